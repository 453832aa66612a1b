# Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
# Three times the cores: most tests wait for programs, clocks and disks.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(6, 3 * (os.cpu_count() or 1)))')

# Tests start programs by the thousand: what they import is compiled once, whatever the caller's environment says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv demo test faults fuzz fleet check bench lock clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.dev ## an environment with everything, from the hashed lock

demo: $(VENV)/.run ## hosts on recordings, a verifier, receipts, totals, an audit, a forgery that fails
	@$(BIN)/keyturn demo

test: $(VENV)/.dev ## the tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Other tests that have a long form: random histories, kills and floods of the start switch, sums beside ingest.
LONG_FORMS := tests/protocol/test_leases_machine.py tests/protocol/test_ledger_state.py tests/verifier/test_rollup.py \
              tests/verifier/test_switch_sequences.py tests/verifier/test_switch_crash.py tests/verifier/test_switch_flood.py \
              tests/agent/test_exec_attacks.py tests/e2e/test_hosts_together.py tests/protocol/test_audit_flips.py \
              tests/verifier/test_crash.py tests/e2e/test_kill.py tests/agent/test_cli.py

# Rows that the tests saw hold go to a file first, and into docs/ only when all of them passed.
faults: $(VENV)/.dev ## every fault and every forgery, one by one; writes docs/faults.md and docs/tamper.md
	@mkdir -p build && rm -f build/faults.jsonl
	@KEYTURN_FAULTS=long KEYTURN_FAULTS_ROWS=build/faults.jsonl $(BIN)/python -m pytest tests/faults $(LONG_FORMS) -v -n $(WORKERS) --dist worksteal --timeout 3600 --durations=40
	@$(BIN)/python -m tests.faults.table build/faults.jsonl

fuzz: $(VENV)/.dev ## every parser under a fuzzer that follows coverage (SECONDS=20 for each)
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),20)

fleet: $(VENV)/.dev ## a recorded fleet of 143 pods for a day, against a sum in DuckDB (needs ../shared)
	@KEYTURN_FAULTS=long KEYTURN_REQUIRE=shared $(BIN)/python -m pytest tests/e2e/test_fleet.py -v --durations=3

check: $(VENV)/.dev ## lint, format, types, import arrows, docs against code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/docs -q

bench: $(VENV)/.dev ## the benchmarks, one JSON object a line; PAGE=1 also writes docs/benchmarks.md
	@mkdir -p build && rm -f build/bench.jsonl
	@for file in benchmarks/[a-z]*.py; do \
	  $(BIN)/python "$$file" > build/bench.part || exit 1; \
	  cat build/bench.part; cat build/bench.part >> build/bench.jsonl; \
	done; rm -f build/bench.part
	@$(if $(PAGE),$(BIN)/python benchmarks/_page.py build/bench.jsonl)

# Versions are resolved once, in dev.txt; the smaller files are subsets of it, so that they can be installed
# into the same environment in any order.
LOCK := --generate-hashes --universal --python-version 3.11 --no-config --no-emit-index-url --no-emit-find-links \
        --custom-compile-command "make lock" --quiet
lock: ## resolve requirements/*.txt again (needs uv; UPGRADE=1 takes newer versions)
	@command -v $(UV) >/dev/null || { echo "keyturn: error: make lock needs uv (UV=/path/to/uv)" >&2; exit 1; }
	$(UV) pip compile pyproject.toml requirements/build.in --all-extras $(LOCK) $(if $(UPGRADE),--upgrade) -o requirements/dev.txt
	$(UV) pip compile pyproject.toml --extra agent $(LOCK) -c requirements/dev.txt $(if $(UPGRADE),--upgrade) -o requirements/agent.txt
	$(UV) pip compile pyproject.toml requirements/build.in --extra agent --extra verifier --extra cli $(LOCK) -c requirements/dev.txt $(if $(UPGRADE),--upgrade) -o requirements/run.txt

clean: ## remove the environment, builds and caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "keyturn: error: $(PYTHON) must be Python 3.11 or newer (got $$($(PYTHON) --version 2>&1))" >&2; \
	  echo "keyturn: hint: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The editable install writes one .pth file: new modules and packages need no new install.
INSTALL = $(BIN)/python -m pip install -qq --disable-pip-version-check
EDITABLE = $(INSTALL) --no-deps --no-build-isolation -e .

# What the programs need at run time: enough for the demo.
$(VENV)/.run: requirements/run.txt pyproject.toml | $(VENV)/bin/python
	$(INSTALL) --require-hashes -r requirements/run.txt
	$(EDITABLE)
	@touch $@

# All of it; a superset of the above, so both are up to date then.
$(VENV)/.dev: requirements/dev.txt requirements/run.txt pyproject.toml | $(VENV)/bin/python
	$(INSTALL) --require-hashes -r requirements/dev.txt
	$(EDITABLE)
	@touch $(VENV)/.run $@
