# Everything runs in .venv, which pip alone builds from setup.cfg.
PYTHON ?= python3
BIN := .venv/bin
# processes that share the tests, a file at a time, one thread each
JOBS ?= 2
# of `make fuzz`: its time, where its cases begin, and more options, such as FUZZ='--only commands:137'
SECONDS ?= 600
SEED ?= 0
FUZZ ?=

.PHONY: .venv demo test test-timm fuzz benchmark lint clean

# the default wheel of torch also runs without a GPU; a CPU-only torch cannot import its torchvision
.venv/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
# a second opinion on the loss of MoCo; its losses need torch alone, the package a trainer of its own
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps 'lightly>=1.5'
	touch $@

.venv: .venv/.installed

demo: .venv  ## train, print the table, export, reload: two minutes on two cores, after the install
	$(BIN)/python -m tests.demo

test: .venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

test-timm: .venv  ## timm's own model tests, from the source distribution of the installed version
	OMP_NUM_THREADS=1 bash tests/timm_models.sh -n $(JOBS)

fuzz: .venv  ## random command lines, damaged files, flipped bits, killed runs; ends with a table
	$(BIN)/python -m tools.fuzz --seconds $(SECONDS) --seed $(SEED) --jobs $(JOBS) $(FUZZ)

benchmark: .venv  ## speed on CIFAR-100-LT beside that of the peers' way; reads $TIMM_LONGTAIL_DATA
	$(BIN)/python benchmark.py --model bcl_resnet32 --dataset cifar100_lt --steps 10 --compare

lint: .venv
	$(BIN)/ruff check .

clean:
	rm -rf .venv .cache output build *.egg-info
