"""What the user's ``model_fn`` gives: the recipe, its suggestions, and the objects in it.

Modules, losses, optimizers and random generators are inspected and adjusted here. Nothing here
trains or knows of segments. This room stands on ``_search``.
"""
