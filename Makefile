.DEFAULT_GOAL := help
PYTHON ?= .venv/bin/python

.PHONY: help
help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: install
install:  ## Make .venv with the package and all that is needed to work on it.
	python3 -m venv .venv
	$(PYTHON) -m pip install -q -c constraints.txt -e '.[demo,test,lint,docs]'

.PHONY: test
test:  ## Run the tests.
	$(PYTHON) -m pytest -q

.PHONY: lint
lint:  ## Check style and types.
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

.PHONY: format
format:  ## Put the code into its style.
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

.PHONY: docs
docs:  ## Build the documentation into docs/_build/html; a warning is an error.
	$(PYTHON) -m sphinx -q -W -b html docs docs/_build/html

.PHONY: demo
demo:  ## Run the demo.
	$(PYTHON) -m optuna_miha demo
