# One command each, on a machine with Python 3.11 and pip:  make train   |   make test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed
RECIPE ?= traffic/cologne8

.PHONY: train test test-all test-ops test-serve lint clean test-ray test-rest
.DEFAULT_GOAL := test

# Made again only when what is installed would change.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@# torch first, by its exact version: a range would fetch a CUDA build of several gigabytes
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep -i '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

train: $(STAMP)
	$(BIN)/seqrl train $(RECIPE)

# Side by side: the tests that start a real Ray, and all others. Two Rays at once would be slow to start.
SHORT := not learning and not slow and not gpu and not kill
test: $(STAMP)
	@$(MAKE) --no-print-directory -j 2 test-ray test-rest

test-ray:
	$(BIN)/python -m pytest -m "system and $(SHORT)"

test-rest:
	$(BIN)/python -m pytest -m "not system and $(SHORT)"

# Everything, hours: learning runs and real kills included.
test-all: $(STAMP)
	$(BIN)/python -m pytest -m "not gpu"

# Metrics with a real Ray. In an environment of its own: with ray[default] every start of Ray is slower.
OPS := .venv-ops
$(OPS)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OPS)
	$(OPS)/bin/pip install --quiet --disable-pip-version-check "$$(grep -i '^torch==' constraints.txt)" -c constraints.txt
	$(OPS)/bin/pip install --quiet --disable-pip-version-check -e '.[dev,ops]' -c constraints.txt
	@touch $@

test-ops: $(OPS)/installed
	$(OPS)/bin/python -m pytest -m slow -s tests/system/test_metrics_live.py

# Serving with a real Ray Serve, likewise.
SERVE := .venv-serve
$(SERVE)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/pip install --quiet --disable-pip-version-check "$$(grep -i '^torch==' constraints.txt)" -c constraints.txt
	$(SERVE)/bin/pip install --quiet --disable-pip-version-check -e '.[dev,serve]' -c constraints.txt
	@touch $@

test-serve: $(SERVE)/installed
	$(SERVE)/bin/python -m pytest -m slow -s tests/system/test_serving.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OPS) $(SERVE) build dist *.egg-info
