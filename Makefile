# Each target sets up what it needs: Python ≥ 3.11 and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test chaos lint bench clean

setup: $(STAMP)

# torch first and alone: by its exact version pip takes the CPU build where one is at hand.
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

# All that kills, fails and takes minutes, and fifty kills where `test` has five.
chaos: $(STAMP)
	CHAOS_KILLS=50 CLUSTER_POSTS=20000 $(BIN)/python -m pytest -s -m "long or not long" tests/acceptance

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) demo-data
