"""The loops of Lightning, transformers, Accelerate and skorch as trainers, and Ray as an executor.

Each module has one public class, an argument ``trainer`` or ``executor`` of ``optimize``. The
package that it needs is imported when the class is used. This sub-package builds on ``_results``
and ``_training``.
"""
