# Short recipes: each is a command that a person could type in the activated .venv.

PYTHON ?= python3
BIN := .venv/bin
PRESET ?= paper
CHECKPOINT ?= dpo
SOURCE ?= mini
REVS ?= workspace
STAGES ?=
BASELINE ?= base
BASE ?= main
export BASE # a branch's name is somebody else's: neither make nor the shell reads it as a command
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help .venv repro study compare diff test check preset doctor export bench agree verify soak

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

repro: .venv  ## rebuild what has changed, and show the answer
	@python -m commands.fetched params.yaml
	dvc repro $(REPRO)
	@python -m commands.show

study: .venv  ## every variant of params.yaml's section `study` that is missing, as experiments; then side by side
	python -m commands.study params.yaml

compare: .venv  ## commits, branches, experiments or the workspace side by side, with paired tests; into metrics/study.md
	python -m commands.compare $(REVS) --baseline "$(BASELINE)" --out metrics/study.md

diff: .venv  ## what the workspace changes from BASE, each metric with its test; fails where one fell for certain
	python -m commands.diff "$$BASE" --out metrics/diff.md

test: .venv  ## every test, by three processes of one thread each
	OMP_NUM_THREADS=1 pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

check: .venv  ## format, lint, types, the arrows between packages, the workflow's schema
	ruff format --check .
	ruff check .
	mypy
	lint-imports --no-cache --no-logo
	check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/study.yml

preset:  ## params.yaml becomes a preset; `git stash push params.yaml` returns and keeps it
	@if test -e params.yaml && ! git diff --quiet HEAD -- params.yaml && \
		! for each in presets/*.yaml; do cmp -s $$each params.yaml && break; done; then \
		echo 'params.yaml has edits that no commit has: commit them, or `git stash push params.yaml` keeps them' >&2; exit 1; fi
	@test -f presets/$(PRESET).yaml || { echo "there is no preset $(PRESET); there are:" $$(basename -s .yaml presets/*) >&2; exit 1; }
	cp presets/$(PRESET).yaml params.yaml

doctor: .venv  ## before a long run: can this machine, this checkout and its sources do what params.yaml says?
	python -m commands.doctor params.yaml

export: .venv  ## a merged Hugging Face folder of models/$(CHECKPOINT) in models/export/
	python -m commands.export models/base models/$(CHECKPOINT) models/export/$(CHECKPOINT) metrics

bench: .venv models/base  ## speed beside the peers': scoring, training, the choice of rows; about an hour on two cores
	python -m benchmarks.speed models/base --source $(SOURCE) --shape none --dtype float32 --device cpu \
		--token-budget 512 --scale 1 --pairs 7 --batches 1 --batches 2 --batches 4
	python -m benchmarks.training models/base --source $(SOURCE) --shape none --dtype float32 --device cpu \
		--steps 2 --batch 8 --per-device-batch 1 --max-tokens 512 --token-budget 512 --pairs 7
	python -m benchmarks.sampling models/base --source $(SOURCE) --scratch . \
		--sizes 100000 --sizes 1000000 --sizes 4233923 --wanted 100000

soak: .venv  ## faults on purpose in a throwaway clone, then property tests, calibrations and kills at length; over an hour
	python -m soak.faults --each 3 --least 100 --seed 0
	python -m soak.hostile --models 300 --rows 3000 --repositories 500 --seed 0
	pytest --hypothesis-profile=soak tests/laws/test_properties.py tests/models/test_chat.py tests/pipeline/test_pipeline.py \
		tests/sampling tests/scoring/test_likelihood.py tests/statistics/test_calibration.py tests/training

agree: .venv models/base  ## our log-likelihoods against lm-eval's own class; about an hour on two cores
	python -m benchmarks.agree models/base --source $(SOURCE) --items 225 --token-budget 512

verify: .venv  ## is every recorded byte still there, and do STAGES (all that need no network) give the same again?
	python -m commands.verify $(STAGES)

models/base:
	dvc repro fetch@model

.venv: .venv/installed

# Written last, so that an installation that failed or was killed is gone on with by the next `make`.
.venv/installed: requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	touch $@
