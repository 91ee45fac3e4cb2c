# Two commands set everything up: `make serve` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 30000

# Pinned versions decide what is installed; a change of either file installs again.
PINS := pyproject.toml constraints.txt
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Two test processes on one thread each use two cores better than one process on two.
export OMP_NUM_THREADS ?= 1
TEST_JOBS ?= 2

.PHONY: help serve chat test lint types unit soak gpu-check docs clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

serve: $(VENV)/.installed  ## serve the demo model on 127.0.0.1:30000
	@unset OMP_NUM_THREADS; exec $(BIN)/sgl serve --port $(PORT)

chat: $(VENV)/.installed  ## talk to the demo model in the terminal
	@unset OMP_NUM_THREADS; exec $(BIN)/sgl chat

test: lint types unit  ## lint, types, layers and tests

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

unit: $(VENV)/.installed-dev
	$(BIN)/pytest -n $(TEST_JOBS) -m "not slow and not gpu"

soak: $(VENV)/.installed-dev  ## the slow tests: 20,000 random schedules, sanitizers, the wheel
	$(BIN)/pytest -n $(TEST_JOBS) -m slow

# From a plain checkout: no virtual environment, only what the image has and the wheels laid beside it.
gpu-check:  ## check and measure what only an NVIDIA GPU can show (9 minutes)
	PYTHONPATH="$(CURDIR):$$PYTHONPATH" $(PYTHON) -m sgl.bench.gpu_check --out docs/gpu

docs: $(VENV)/.installed-dev  ## regenerate the generated tables of docs/
	$(BIN)/python -m tools.generate_docs

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sgl needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

# torch comes first and exactly: a looser request would choose a build of its own.
$(VENV)/.installed: $(VENV)/bin/python $(PINS)
	@echo "Installing sgl into $(VENV) (about two minutes the first time) ..."
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(PIP) --editable .
	@$(BIN)/sgl kernels > /dev/null  # compiles the CPU kernels, so that the first start does not wait for them
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

clean:  ## remove everything that was built or installed
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
