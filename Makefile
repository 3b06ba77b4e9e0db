# Everything runs in .venv, made on first use with Python 3.11 or newer and pip.
PYTHON ?= python3
TORCH := 2.13.0
BIN := .venv/bin

.PHONY: help install train test lint bench tensorboard lock
help:  ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

install: .venv/ready  ## Install into .venv
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet torch==$(TORCH)  # its build depends on the machine: one version, no one hash
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

train: .venv/ready  ## Train the default model; add settings with ARGS="model=cnn"
	$(BIN)/python src/train.py $(ARGS)

test: .venv/ready  ## Run every test, fast ones first
	$(BIN)/pytest -n auto -m "not slow"
	$(BIN)/pytest -n auto --dist worksteal -m slow

lint: .venv/ready  ## Check style and types
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/pyright

bench: .venv/ready  ## Time this template against a loop by hand and transformers' Trainer (two hours)
	$(BIN)/python tests/bench/spine.py
	$(BIN)/python tests/bench/finetune.py
	$(BIN)/python tests/bench/data.py
	$(BIN)/python tests/bench/tables.py
	$(BIN)/python tests/bench/lasting.py

tensorboard: .venv/ready  ## Show the runs
	$(BIN)/tensorboard --logdir logs

lock: .venv/ready  ## Write requirements.lock anew from pyproject.toml
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --group dev --output-file requirements.lock
