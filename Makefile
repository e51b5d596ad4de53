# Every target sets up what it needs and no more; `make` alone lists them. VENV=… puts the virtual environment elsewhere.

VENV ?= .venv
# Of the tests. They wait a good deal: six keep two cores busy. WORKERS=0 runs them in one process, to be debugged.
WORKERS ?= 6
PYTHON_BIN := $(VENV)/bin/python
PYTEST := $(PYTHON_BIN) -m pytest
# Several processes share the tests by file, since servers are shared within a file (and one Airflow within
# tests/airflow); what takes longest comes first: see tests/conftest.py.
SHARED := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
export VENV
# Hundreds of processes import the package: compiled once, not by each of them.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo airflow airflow-stop test quick room fix lint types unit mysql stores survival disaster flips full cluster bench dist matrix constraints clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## what `make test` needs, from constraints.txt (the other targets set up by themselves)
	@.ci/setup test

demo: ## the main job without a person: replica, backup to S3, damage, restore, comparison
	@.ci/setup demo
	@$(PYTHON_BIN) -m demo

airflow: ## leave a standalone Airflow running with the demo's store and DAGs
	@.ci/setup demo
	@$(PYTHON_BIN) -m demo airflow

airflow-stop: ## stop what `make airflow` started
	@.ci/setup demo
	@$(PYTHON_BIN) -m demo airflow-stop

# The cheap check first; types take one core half a minute, so the tests begin meanwhile.
test: ## lint, types and tests: what continuous integration runs
	@.ci/setup test
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory -j2 types unit

quick: ## tests that need no server, no Airflow and no child process: seconds
	@.ci/setup dev
	@$(PYTEST) $(SHARED) -m quick $(ARGS)

room: ## the tests of one room: make room ROOM=backup (a folder of tests/)
	@.ci/setup test
	@$(PYTEST) $(SHARED) tests/$(ROOM) $(ARGS)

lint: ## ruff: rules and formatting
	@.ci/setup lint
	@$(PYTHON_BIN) -m ruff check
	@$(PYTHON_BIN) -m ruff format --check

fix: ## let ruff repair and format what it can
	@.ci/setup lint
	@$(PYTHON_BIN) -m ruff check --fix
	@$(PYTHON_BIN) -m ruff format

types: ## mypy, strict on the package
	@.ci/setup dev
	@$(PYTHON_BIN) -m mypy

unit: ## only the tests; make unit ARGS="-k restore"
	@.ci/setup test
	@$(PYTEST) $(SHARED) --durations 20 $(ARGS)

mysql: ## all tests of replication on MySQL 9.7 and MariaDB 11.8, with twenty kills in each phase: an hour
	@.ci/setup mysql
	@DUCKLING_SERVERS=all DUCKLING_TESTS=full $(PYTEST) $(SHARED) tests/replication tests/survival/test_replication.py $(ARGS)

stores: ## all answers to all requests, nginx, and what each S3 server here can do: writes docs/reference/stores.md
	@.ci/setup stores
	@DUCKLING_TESTS=full $(PYTEST) tests/stores tests/cli/test_any_answer.py $(ARGS)

survival: ## kills at every step, races, full disks, hostile stores: all of each (make test has a short form)
	@.ci/setup test
	@DUCKLING_TESTS=full $(PYTEST) tests/survival $(ARGS)

disaster: ## the rehearsal: a host with three databases is lost, the runbook's commands bring them back; prints the time
	@.ci/setup test
	@DUCKLING_TESTS=full $(PYTEST) tests/survival/test_disaster.py $(ARGS)

flips: ## 200 random flips of bits in stored objects of each mode: a drill finds all of them
	@.ci/setup test
	@DUCKLING_TESTS=full $(PYTEST) tests/survival/test_flips.py $(ARGS)

full: ## all tests in their long forms: half an hour, before a release
	@.ci/setup test
	@DUCKLING_TESTS=full $(PYTEST) $(SHARED) --durations 20 $(ARGS)

cluster: ## the topology of docker-compose.yaml as processes, two workers: minutes; make test only checks the file
	@.ci/setup cluster
	@DUCKLING_CLUSTER=1 $(PYTEST) tests/cluster $(ARGS)

bench: ## the figures of docs/internals/performance.md: 30 minutes and 40 GiB of disk; make bench ARGS=--quick
	@.ci/setup stores
	@$(PYTHON_BIN) -m benchmarks $(ARGS)

dist: ## wheel and sdist in dist/, with their metadata and contents checked
	@.ci/setup dev
	@$(PYTHON_BIN) .ci/dist

matrix: dist ## the wheel on Airflow 3.1, 3.2 and 3.3, each in an environment of its own: 30 minutes
	@.ci/setup test
	@WORKERS=$(WORKERS) .ci/matrix $(ARGS)

constraints: ## pin the newest versions
	@.ci/setup uv
	@.ci/constraints $(VENV)

clean: ## remove the virtual environment, caches and builds (not the demo's data)
	@.ci/setup remove
	rm -rf .artifacts .servers .bench .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find duckling_provider benchmarks demo dags tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
