# `make demo` and `make test` work on a fresh machine with git, make and Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-slow test-oldest format check pages clean
help:
	@echo "make demo       install, then condense real digits, score and report (minutes, CPU)"
	@echo "make test       install, then run the tests (minutes, no network, no GPU)"
	@echo "make test-slow  the long tests too"
	@echo "make test-oldest  the tests with the oldest versions that pyproject.toml allows"
	@echo "make format     rewrite the code in the house format"
	@echo "make pages      write docs/reference.md from the code, and the tables of results/"
	@echo "make check      look whether either is needed, and at types"

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gencond needs Python >= 3.11, and '$(PYTHON)' is older: make demo PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Installing into .venv (PyTorch and its libraries, some GB: a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: .venv/installed
	@$(BIN)/gencond demo

# A process for each core, of one thread each: threads of several processes would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test: .venv/installed
	$(PYTEST)

test-slow: .venv/installed
	$(PYTEST) -m "slow or not slow"

# pip has no word for the oldest versions that fit each other; uv has.
OLDEST := .venv-oldest
$(OLDEST)/installed: .venv/installed
	@echo "Installing the oldest versions into $(OLDEST) (some GB: a few minutes the first time)"
	.venv/bin/uv venv --quiet --clear --seed --python .venv/bin/python $(OLDEST)
	.venv/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable ".[dev]"
	@touch $@

# Warnings are no errors there: old packages use what newer ones have deprecated since.
test-oldest: $(OLDEST)/installed
	$(MAKE) --no-print-directory test BIN=$(OLDEST)/bin PYTEST_ADDOPTS="-W default"

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python scripts/reference.py --check
	$(BIN)/python scripts/results.py --check

pages: .venv/installed
	$(BIN)/python scripts/reference.py
	$(BIN)/python scripts/results.py

clean:
	rm -rf build *.egg-info .pytest_cache .ruff_cache
