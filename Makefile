# nablab: `make run` shows what it does, `make test` checks that it works.
# Everything lives in .venv; nothing else on the machine is touched.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find src -type f -not -name '*.pyc') pyproject.toml README.md
WORKERS ?= 3

.DEFAULT_GOAL := help
.SECONDARY:
.PHONY: help run test test-slow bench lint format docs develop clean

help:
	@echo "make run        install into .venv and run the first experiment (about a minute)"
	@echo "make test       linters, types, import rules and tests, on the installed wheel"
	@echo "make test-slow  the tests that take minutes"
	@echo "make bench      ratios against PyTorch, JAX and other tools, measured side by side"
	@echo "make format     format the code"
	@echo "make docs       write the experiments' pages anew from their docstrings"
	@echo "make develop    install the checkout itself (editable) for development"
	@echo "make clean      remove .venv and build products; runs/ stays"

run: $(VENV)/installed
	$(BIN)/nablab run deep-vs-shallow --preset quick

test: $(VENV)/installed-dev lint
	$(BIN)/python tools/check_install.py
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q
	$(BIN)/python -m pytest -q --doctest-modules --pyargs nablab

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow -q

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-dev
	$(BIN)/python tools/write_docs.py

develop: $(VENV)/dependencies-dev
	$(PIP) install -q --no-deps -e .
	rm -f $(VENV)/installed $(VENV)/installed-dev

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The environment, in steps that make repeats only when their inputs change.

$(VENV)/created:
	@test -n "$(PYTHON)" || { echo "nablab needs Python 3.11 or newer (python3 is older or absent)."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and pinned exactly: a range would take a newer build with gigabytes of CUDA packages
# although a CPU build of the pinned version may be at hand.
$(VENV)/dependencies: $(VENV)/created constraints.txt pyproject.toml
	$(PIP) install -q --constraint constraints.txt torch
	$(PIP) install -q --constraint constraints.txt $$($(BIN)/python tools/requirements.py)
	@touch $@

$(VENV)/dependencies-%: $(VENV)/dependencies
	$(PIP) install -q --constraint constraints.txt $$($(BIN)/python tools/requirements.py $*)
	$(PIP) install -q --constraint constraints.txt --no-deps $$($(BIN)/python tools/requirements.py --alone $*)
	@touch $@

$(VENV)/wheel: $(VENV)/created $(SOURCES)
	rm -rf dist && $(PIP) wheel -q --no-deps --wheel-dir dist .
	@touch $@

$(VENV)/installed: $(VENV)/dependencies $(VENV)/wheel
	$(PIP) install -q --no-deps --force-reinstall dist/nablab-*.whl
	@touch $@

$(VENV)/installed-%: $(VENV)/dependencies-% $(VENV)/installed
	@touch $@
