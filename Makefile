# Every target sets up what it needs; `make` alone lists them. VENV=… puts the virtual environment elsewhere.

VENV ?= .venv
# Of the tests. They wait a good deal: two keep two cores busy. WORKERS=0 runs them in one process, to be debugged.
WORKERS ?= 2
PYTHON_BIN := $(VENV)/bin/python
export VENV

.DEFAULT_GOAL := help
.PHONY: help setup demo airflow airflow-stop test lint types unit survival cluster bench dist matrix constraints clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## virtual environment from constraints.txt (the other targets do it by themselves)
	@.ci/setup

demo: setup ## the main job without a person: replica, backup to S3, damage, restore, comparison
	@$(PYTHON_BIN) -m demo

airflow: setup ## leave a standalone Airflow running with the demo's store and DAGs
	@$(PYTHON_BIN) -m demo airflow

airflow-stop: setup ## stop what `make airflow` started
	@$(PYTHON_BIN) -m demo airflow-stop

# One after the other even under -j: the cheap checks first, and readable output.
test: setup ## lint, types and tests: what continuous integration runs
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory unit

lint: setup ## ruff: rules and formatting
	@$(PYTHON_BIN) -m ruff check
	@$(PYTHON_BIN) -m ruff format --check

types: setup ## mypy, strict on the package
	@$(PYTHON_BIN) -m mypy

unit: setup ## only the tests; make unit ARGS="-k restore"
	@$(PYTHON_BIN) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

survival: setup ## kills at every step, races, full disks, hostile stores: all of each (make test has a short form)
	@DUCKLING_SURVIVAL=full $(PYTHON_BIN) -m pytest tests/survival $(ARGS)

cluster: ## the topology of docker-compose.yaml as processes, two workers: minutes; make test only checks the file
	@.ci/setup --cluster
	@DUCKLING_CLUSTER=1 $(PYTHON_BIN) -m pytest tests/cluster $(ARGS)

bench: setup ## the figures of docs/performance.md: 30 minutes and 40 GiB of disk; make bench ARGS=--quick
	@$(PYTHON_BIN) -m benchmarks $(ARGS)

dist: setup ## wheel and sdist in dist/, with their metadata and contents checked
	@$(PYTHON_BIN) .ci/dist

matrix: dist ## the wheel on Airflow 3.1, 3.2 and 3.3, each in an environment of its own: 30 minutes the first time
	@WORKERS=$(WORKERS) .ci/matrix $(ARGS)

constraints: ## pin the newest versions anew
	@.ci/setup --venv-only
	@$(PYTHON_BIN) -m pip -qq --disable-pip-version-check install --constraint constraints.txt uv
	@.ci/constraints $(VENV)

clean: ## remove the virtual environment, caches and builds (not the demo's data)
	rm -rf $(VENV) $(VENV).lock .artifacts .bench .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find duckling_provider benchmarks demo dags tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
