# Two commands on a fresh machine: `make demo` and `make test`. Needs python3 (>= 3.11) with pip, and make; nothing else.
# Every target sets up .venv first, once; see tools/venv.py.

PYTHON ?= python3
JOBS   ?= 2
ARGS   ?=
BIN    := .venv/bin
PATHS  := src tests benchmarks tools

# Counting lines slows the tests down, so that only test-all does it; a run of chosen tests (ARGS) need not reach the
# coverage.
ifeq ($(strip $(ARGS)),)
COVERED := --cov=convnn --cov-report=term --cov-fail-under=95
endif

.PHONY: help setup demo test test-slow test-all test-lowest fuzz check format bench lock tables clean clean-venv

help: ## show this list
	@echo "convnn: one operator from convolution to attention. Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo "Pass arguments on with ARGS: make demo ARGS=\"--quick\", make test ARGS=\"-k golden\"."

setup: ## create or update .venv (the other targets do it by themselves)
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "$(PYTHON) was not found: install Python 3.11 or newer."; exit 1; }
	@$(PYTHON) tools/venv.py

demo: setup ## train the whole spectrum on real digits and write demo/report.html (up to 3 minutes)
	@$(BIN)/convnn demo $(ARGS)

test: setup ## run the tests and doctests but the slow ones on 2 cores (some minutes)
	@echo "Running the tests in $(JOBS) processes ..."
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not slow" $(COVERAGE) $(ARGS)

test-slow: setup ## run the slow tests alone: killed runs, whole commands, compiled models
	@echo "Running the slow tests in $(JOBS) processes ..."
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m slow $(ARGS)

test-all: setup ## run all tests, the slow ones too; line coverage at least 95% without these
	@$(MAKE) --no-print-directory test-slow
	@$(MAKE) --no-print-directory test COVERAGE="$(COVERED)"

test-lowest: setup ## run the tests with the lowest versions that pyproject.toml allows, in .venv-lowest (6 GB more)
	@$(BIN)/python tools/lowest.py -n $(JOBS) $(ARGS)

fuzz: setup ## compare the native kernels with the plain forms in 100,000 random cases (about ten minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.native.fuzz $(ARGS)

check: setup ## lint, format and types, changing nothing (about a minute the first time)
	@echo "ruff check ..."
	@$(BIN)/ruff check $(PATHS)
	@echo "ruff format --check ..."
	@$(BIN)/ruff format --check $(PATHS)
	@echo "mypy --strict src/convnn (about a minute the first time) ..."
	@$(BIN)/mypy --strict

format: setup ## let ruff mend style and format
	@$(BIN)/ruff check --fix $(PATHS)
	@$(BIN)/ruff format $(PATHS)

bench: setup ## time the layers on this machine beside what they replace (under 2 minutes)
	@$(BIN)/convnn bench $(ARGS)

lock: setup ## write requirements.lock from what .venv holds (UPGRADE=1: take the newest versions first)
ifeq ($(UPGRADE),1)
	@echo "Upgrading everything in .venv (minutes) ..."
	@$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager -e ".[vision,train,study,export,dev]"
endif
	@$(BIN)/python tools/lock.py

tables: setup ## write the tables of README.md, docs/benchmarks.md and results/README.md from the records in results/
	@$(BIN)/python tools/tables.py

clean: ## remove what the other targets wrote, but keep .venv
	@rm -rf demo runs dist build site htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

clean-venv: ## remove .venv and .venv-lowest
	@rm -rf .venv .venv-lowest
