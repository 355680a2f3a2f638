# make run · make test · make quick · make lint · make hooks · make viz · make mlflow · make site ·
# make wheel · make interop · make bench
# Each sets up .venv first, from the exact versions in requirements.lock, unless that is done already.

PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed
# Commands that start others (kedro mlflow ui starts mlflow) find them here.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
# Set in many images: each process of the tests would compile the package and the tests anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup hooks run test quick lint types baseline viz mlflow site wheel interop bench

help: ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(INSTALLED) ## create .venv and install the locked dependencies and the package

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

hooks: setup ## check every commit as `make lint` would
	$(BIN)/pre-commit install

# Two nodes at a time, on one thread each.
run: setup ## run every pipeline: train, compare, probe, construct
	$(BIN)/kedro run --runner incontext_linear.runs.side_by_side.SideBySideRunner

# A process a core (NUM_WORKERS=1 for one core), each file's tests in one of them, in the order of
# tests/conftest.py.
NUM_WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(NUM_WORKERS) --dist loadfile \
	--no-loadscope-reorder

test: setup ## run all tests
	$(PYTEST)

quick: setup ## run the tests without the slow ones: a minute and a quarter
	$(PYTEST) -m "not slow"

lint: setup ## check style, layers and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory types

types: setup ## check types; known errors are in .basedpyright/baseline.json
	$(BIN)/basedpyright --baselinemode=discard

baseline: setup ## write the list of known type errors anew, once some are mended
	$(BIN)/basedpyright --writebaseline

viz: setup ## show the graph in kedro-viz
	@echo "a box for each pipeline: http://127.0.0.1:4141/?types=task"
	$(BIN)/kedro viz run --no-browser

mlflow: setup ## show the runs in the MLflow UI
	@echo "Runs side by side: http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=algorithms"
	$(BIN)/kedro mlflow ui

site: setup ## build the documents and the graph into site; any warning stops it
	$(BIN)/python -m tools.site

wheel: setup ## build the package into dist, and use it alone in a fresh environment
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation
	$(PYTHON) -m venv build/alone
	build/alone/bin/python -m pip install --quiet --constraint requirements.lock dist/*.whl
	build/alone/bin/python -I tests/project/programs/package_alone.py

# TransformerLens, nnsight and pyvene in an environment that lies on .venv: it finds what is there,
# and .venv stays as requirements.lock has it.
INTEROP := .venv-interop
PACKAGES := import sysconfig; print(sysconfig.get_path("purelib"))

interop: $(INTEROP)/.installed ## test the learner in TransformerLens, nnsight and pyvene
	$(INTEROP)/bin/python -m pytest tests/interop

$(INTEROP)/.installed: requirements-interop.lock $(INSTALLED)
	$(PYTHON) -m venv --clear --without-pip $(INTEROP)
	echo "import site; site.addsitedir('$$($(BIN)/python -c '$(PACKAGES)')')" \
		> "$$($(INTEROP)/bin/python -c '$(PACKAGES)')/locked.pth"
	$(INTEROP)/bin/python -m pip install --quiet --no-deps --requirement requirements-interop.lock
	$(INTEROP)/bin/python -m pip check
	@touch $@

bench: setup ## time the predictors against the loops that people run today
	$(BIN)/python -m benchmarks.predictors
