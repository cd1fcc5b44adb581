# Each target installs what it needs. Requirements: Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test chaos lint bench clean

setup: $(STAMP)

# torch is installed first, by its exact version: pip then takes the CPU build if one is available.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m cli demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not long"

# Kills, outages and everything else that takes minutes; fifty kills, of which `test` has five.
chaos: $(STAMP)
	CHAOS_KILLS=50 CLUSTER_POSTS=20000 $(BIN)/python -m pytest -s -m "long or not long" tests/acceptance

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py tests/test_docs.py

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) demo-data
