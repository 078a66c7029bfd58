# A virtual environment beside the code; every target sets it up first. PYTHON=python3.12 make test picks another Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A real inference server, in an environment of its own that sees the first one behind its own libraries.
SERVER := .mlserver

# Compiled code is kept, or every process of a test would compile the same modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check lint types slow clean

demo: $(READY)
	$(BIN)/neuralfuse demo --out demo

test: $(READY)
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

slow: $(READY) $(SERVER)/.ready
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "slow and not gpu"

check: lint types test slow

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "neuralfuse needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(READY)

$(SERVER)/.ready: $(READY)
	$(PYTHON) -m venv $(SERVER)
	$(SERVER)/bin/python -m pip install --quiet 'mlserver==1.7.1' 'uvloop<0.22'
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0], "$(CURDIR)/src", sep="\n")' \
		> "$$($(SERVER)/bin/python -c 'import site; print(site.getsitepackages()[0])')/zz_neuralfuse.pth"
	touch $(SERVER)/.ready

clean:
	rm -rf $(VENV) $(SERVER) demo build
