"""Trainers that run the loops of other packages: Lightning, transformers, Accelerate, skorch.

Each module has one public class, an argument ``trainer`` of ``optimize``, whose method ``recipe``
makes the recipe. The package that it needs is imported when the class is used. This sub-package
builds on ``_results`` and ``_training``.
"""
