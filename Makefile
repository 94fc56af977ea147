# Short recipes: each is a command that a person could type in the activated .venv.

PYTHON ?= python3
BIN := .venv/bin
PRESET ?= paper
CHECKPOINT ?= dpo
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro test check preset export

repro: .venv  ## rebuild what has changed, and show the table
	dvc repro

test: .venv  ## every test
	pytest

check: .venv  ## format, lint, types
	ruff format --check .
	ruff check .
	mypy

preset:  ## params.yaml becomes a preset; `git checkout params.yaml` returns
	cp presets/$(PRESET).yaml params.yaml

export: .venv  ## a merged Hugging Face folder of models/$(CHECKPOINT) in models/export/
	python -m stages.export models/base models/$(CHECKPOINT) models/export/$(CHECKPOINT) metrics

.venv: requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	touch .venv
