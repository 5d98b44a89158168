.DEFAULT_GOAL := help
PYTHON ?= .venv/bin/python

.PHONY: help
help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: install
install:  ## Make .venv with the package and all that is needed to work on it.
	python3 -m venv .venv
	$(PYTHON) -m pip install -q -c constraints.txt -e '.[demo,test,lint,docs]'

.PHONY: quick
quick:  ## Run the quick tests, in less than two minutes on two cores.
	$(PYTHON) -m pytest -q -n 2 --dist loadfile -m "not slow and not long"

.PHONY: test
test:  ## Run all tests.
	$(PYTHON) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: lint
lint:  ## Check style, types, and the imports between rooms.
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(dir $(PYTHON))lint-imports

.PHONY: format
format:  ## Put the code into its style.
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

.PHONY: docs
docs:  ## Build the documentation into docs/_build/html; a warning is an error.
	$(PYTHON) -m sphinx -q -W -b html docs docs/_build/html

.PHONY: accelerator
accelerator:  ## Test and measure on an accelerator, in less than eight minutes.
	$(PYTHON) -m pytest -q tests/test_accelerator.py
	$(PYTHON) benchmarks/gpu.py

.PHONY: demo
demo:  ## Run the demo.
	$(PYTHON) -m optuna_miha demo
