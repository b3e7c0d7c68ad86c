# Every verb sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/ready
CONFIG ?= configs/pocket.yaml
RUN_FOLDER ?= runs/pocket
WORKERS ?= 2
define EXAMPLE
Problem: Compute 48 + 29.
<think>

endef
export PROMPT ?= $(EXAMPLE)

.PHONY: train export generate test lint type check bench help

help:
	@echo "make train   train a dispatcher and compare it with the baselines (CONFIG=configs/pocket.yaml)"
	@echo "make export  write the trained dispatcher to bundle/ (RUN_FOLDER=runs/pocket); make generate: decode with it (PROMPT=...)"
	@echo "make test    run the tests in two processes (WORKERS=2)"
	@echo "make lint    ruff; make type: mypy; make check: lint, type and test"
	@echo "make bench   fixed student against transformers' assisted generation; speed of replay"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	@echo "setting up $(VENV), which takes a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

train: $(READY)
	$(RUN) -m dispatch_rl.train --config $(CONFIG) --overwrite=true

export: $(READY)
	$(RUN) -m dispatch_rl.export $(RUN_FOLDER) --output bundle --overwrite=true

generate: $(READY)
	$(RUN) -m dispatch_rl.generate --bundle bundle --prompt "$$PROMPT" --show

test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) --dist loadfile

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

type: $(READY)
	$(RUN) -m mypy

check: lint type test

bench: $(READY)
	$(RUN) -m dispatch_rl.bench decode
	$(RUN) -m dispatch_rl.bench replay
