# Two commands do everything: `make demo` and `make test`. Both set up the virtual environment first if it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable

.PHONY: help demo test check bench clean

help:
	@echo "make demo   train a U-Net on pictures made on the spot and open the road from data to report (demo/)"
	@echo "make test   run the tests"
	@echo "make check  ruff, mypy strict, the architecture test"
	@echo "make bench  speed beside the peers, as benchmarks/README.md records it"
	@echo "make clean  remove the virtual environment and what demo and tests left"

demo: $(VENV)/.demo
	$(BIN)/kirie demo --out demo

# Ray and the runtimes of exports bring threads and memory managers of their own: their tests have processes of their own.
test: $(VENV)/.dev
	$(BIN)/python -m pytest --ignore tests/distributed --ignore tests/export
	$(BIN)/python -m pytest tests/export
	$(BIN)/python -m pytest tests/distributed

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "kirie needs Python 3.11 or newer; choose one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) ".[dev]"
	@touch $@ $(VENV)/.demo
