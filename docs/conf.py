"""Configuration of the documentation: ``sphinx-build -W -b html docs docs/_build/html``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

project = "optuna_miha"
author = "The optuna_miha authors"
copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "pypi.md"]  # The page of the package index.

html_theme = "furo"
html_title = "optuna_miha"
html_static_path = ["_static"]

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# References to other packages are not resolved, so that the documentation builds offline.
nitpicky = True
nitpick_ignore = [
    ("py:class", "ValueMutation"),
    ("py:class", "Combine"),
    ("py:class", "optuna_miha._results.ensemble.Library"),
]
nitpick_ignore_regex = [
    ("py:.*", r"(optuna|torch|nn|numpy|np|concurrent|collections|os|pathlib|typing|time)\..*"),
]
