"""Configuration of the documentation: ``sphinx-build -W -b html docs docs/_build/html``."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from optuna_miha import __version__

project = "optuna_miha"
version = release = __version__
author = "The optuna_miha authors"
copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
if "READTHEDOCS" in os.environ:  # Elsewhere, the documentation is built without the network.
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "optuna": ("https://optuna.readthedocs.io/en/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
exclude_patterns = ["_build", "pypi.md"]  # The page of the package index.

html_theme = "furo"
html_title = f"optuna_miha {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
autosummary_generate = False  # The pages of the reference are written by hand.
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Without intersphinx, references to other packages are not resolved.
nitpicky = True
nitpick_ignore = [
    ("py:class", "ValueMutation"),
    ("py:class", "Combine"),
    ("py:class", "optuna_miha._results.ensemble.Library"),
]
nitpick_ignore_regex = [
    # First lines of docstrings, which a summary shows outside of their module and their class.
    ("py:class", r"Trainer|TrainerContext"),
    ("py:meth", r"to_csv|to_json"),
    # Aliases and type variables of annotations.
    ("py:class", r"PathLike|optuna_miha\._(model|training)\..*"),
    ("py:.*", r"(optuna|torch|nn|numpy|np|concurrent|collections|os|pathlib|typing|time)\..*"),
]
