# make demo    the mini model answers questions and draws: pictures in demo/
# make test    all tests             make lint   ruff and the Transformers structure linter
# make fuzz    make up bad inputs for SECONDS (300)
# make mini    train EvoTok-mini anew, stage by stage; stopped, it goes on from the last checkpoint
# make clean   remove what these targets made, trainings in runs/ excepted
#
# Each target makes .venv with PYTHON (3.11 or newer) when it is missing or older than what it is made from.

PYTHON ?= python3
SECONDS ?= 300
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
MADE_FROM := setup.py pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test fuzz lint format mini clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

# Torch first and alone: asked for by another package, pip may pick another build of it.
$(VENV)/.ready: $(MADE_FROM)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "EvoTok needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "Installing EvoTok into $(VENV) (a few minutes, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "Installing what tests and training need ..."
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: $(VENV)/.ready
	@$(BIN)/evotok demo --out demo

test: $(VENV)/.ready-dev
	@$(BIN)/python -m pytest

fuzz: $(VENV)/.ready-dev
	@$(BIN)/python -m pytest tests/test_strangers_fuzz.py --fuzz-seconds $(SECONDS)

lint: $(VENV)/.ready-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m mlinter --no-progress --no-cache modeling_evotok processing

format: $(VENV)/.ready-dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

mini: $(VENV)/.ready-dev
	$(BIN)/evotok train configs/mini/tokenizer.yaml
	$(BIN)/evotok train configs/mini/tokenizer-semantics.yaml
	$(BIN)/evotok train configs/mini/pretrain.yaml
	$(BIN)/evotok train configs/mini/sft.yaml
	$(BIN)/evotok train configs/mini/gen.yaml
	$(BIN)/evotok export runs/mini/gen --out assets/evotok-mini --guidance-min-p 0.3
	$(BIN)/evotok measure mini
	$(BIN)/evotok demo --out demo
	cp demo/text_to_image.png demo/reconstructions.png assets/evotok-mini/
	$(BIN)/python -m evotok.readme

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
