# Everything runs in .venv, which pip alone builds from setup.cfg.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: .venv demo test test-timm benchmark lint clean

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
	$(BIN)/python -m pytest -q

test-timm: .venv  ## timm's own model tests, from the source distribution of the installed version
	bash tests/timm_models.sh

benchmark: .venv  ## speed on CIFAR-100-LT beside that of the peers' way; reads $TIMM_LONGTAIL_DATA
	$(BIN)/python benchmark.py --model bcl_resnet32 --dataset cifar100_lt --steps 10 --compare

lint: .venv
	$(BIN)/ruff check .

clean:
	rm -rf .venv .cache output build *.egg-info
