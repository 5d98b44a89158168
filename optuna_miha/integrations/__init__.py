"""The loops of Lightning, transformers, Accelerate and skorch; Ray, loky and ``torchrun``.

Each module has one public class, an argument ``trainer`` or ``executor`` of ``optimize``, except
for ``torch_distributed``, whose functions call ``optimize`` on the ranks of ``torchrun``. The
package that a module needs is imported when its class is used.
"""
