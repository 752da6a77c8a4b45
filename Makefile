# Everything runs in .venv, which pip alone builds from setup.cfg.
PYTHON ?= python3
BIN := .venv/bin
PIP := install --quiet --disable-pip-version-check
# processes that share the tests, a file at a time, one thread each
JOBS ?= 2
# of `make fuzz`: its time budget, its seed, and more options, such as FUZZ='--only commands:137'
SECONDS ?= 600
SEED ?= 0
FUZZ ?=

.PHONY: .venv demo first-model test test-timm test-oldest coverage fuzz docs docs-serve dist benchmark lint clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

# the default wheel of torch also runs without a GPU; a CPU-only torch cannot import its torchvision
.venv/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip $(PIP) -e '.[test]'
# a second opinion on the loss of MoCo; its losses need torch alone, the package a trainer of its own
	$(BIN)/pip $(PIP) --no-deps 'lightly>=1.5'
	touch $@

.venv: .venv/.installed

demo: .venv  ## train, print the table, export, reload: two minutes on two cores, after the install
	$(BIN)/python -m tools.demo

first-model: .venv  ## a CIFAR-100-LT model in 60 to 80 minutes on two cores; goes on where it was stopped
	$(BIN)/timm-longtail train -c resnet32_cifar.balanced_softmax-hour.cifar100_lt_if100 --experiment first-model --resume auto

test: .venv  ## all tests; those that need CIFAR-100 are skipped without $TIMM_LONGTAIL_DATA
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

test-timm: .venv  ## timm's own model tests on our models, from the source distribution of the installed version
	OMP_NUM_THREADS=1 bash tests/timm_models.sh -n $(JOBS)

test-oldest:  ## all tests on the oldest versions that setup.cfg admits, in an environment of its own
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) -m tools.oldest test > .venv-oldest/requirements.txt
	.venv-oldest/bin/pip $(PIP) -r .venv-oldest/requirements.txt
	.venv-oldest/bin/pip $(PIP) --no-deps -e .
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

coverage: .venv  ## lines of the package that the tests run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov timm_longtail --cov-report term:skip-covered

fuzz: .venv  ## random command lines, damaged files, flipped bits, killed runs; ends with a table
	$(BIN)/python -m tools.fuzz --seconds $(SECONDS) --seed $(SEED) --jobs $(JOBS) $(FUZZ)

docs: .venv  ## build the documentation in build/site; a warning or a dead link is an error
	$(BIN)/pip $(PIP) -e '.[docs]'
	$(BIN)/mkdocs build --strict

docs-serve: .venv  ## show the documentation while it is written
	$(BIN)/pip $(PIP) -e '.[docs]'
	$(BIN)/mkdocs serve

dist: .venv  ## build and check the wheel and the source distribution
	$(BIN)/pip $(PIP) build twine
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

benchmark: .venv  ## speed on CIFAR-100-LT beside the reference pipeline; reads $TIMM_LONGTAIL_DATA
	$(BIN)/python benchmark.py --model bcl_resnet32 --dataset cifar100_lt --steps 10 --compare

lint: .venv  ## ruff, mypy, and whether generated tables are up to date
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m tools.readme

clean:
	rm -rf .venv .venv-oldest .cache output build dist *.egg-info
