# `make quickstart` and `make test` need Python >= 3.10 and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
# Tiny models compute on one thread, so several files of tests run side by side.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(8, os.cpu_count() or 1))')
PYTEST := $(BIN)/python -m pytest -q --dist loadfile

.PHONY: quickstart test test-full lint types docs check-python clean

quickstart: $(VENV)/.core
	$(BIN)/python examples/quickstart.py

test: lint types
	$(PYTEST) -n $(WORKERS) -m "not slow"

test-full:
	@$(MAKE) --no-print-directory test
	$(PYTEST) -n 2 -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -q -W --keep-going -n -j auto docs docs/_build/html
	@echo "docs/_build/html/index.html"

check-python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"Python 3.10 or newer is needed; {sys.executable} is {v.major}.{v.minor}. Try: make PYTHON=python3.11 ...")'

$(VENV)/bin/python:
	@$(MAKE) --no-print-directory check-python
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing the library and its report extra into $(VENV) ..."
	$(PIP) -e '.[report]'
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "installing what tests need into $(VENV) ..."
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist docs/_build docs/reference docs/notebooks *.egg-info .pytest_cache .mypy_cache .ruff_cache
