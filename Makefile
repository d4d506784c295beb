# make demo   train, score and sample a tiny model on this machine, report in runs/demo
# make test   the tests
# make check  linter, types, and the direction of imports

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo test check
.DELETE_ON_ERROR:

demo: .venv/package
	rm -rf runs/demo
	$(BIN)/scangolf data local --out runs/demo/data
	$(BIN)/scangolf train tiny --data runs/demo/data --out runs/demo

test: .venv/development
	$(BIN)/pytest -n auto

check: .venv/development
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

.venv/python:
	@test -n "$(PYTHON)" || { echo "scangolf needs Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/package: .venv/python pyproject.toml constraints.txt
	@echo "installing scangolf and its libraries into .venv (once)"
	$(PIP) -e .
	touch $@

.venv/development: .venv/package
	$(PIP) -e '.[dev]'
	touch $@
