# `make demo` and `make test` do everything on a machine that has Python 3.11+, git and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed
export RAY_AUTH_MODE ?= disabled
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: demo test test-long coverage lint lock clean

demo: $(READY)
	$(BIN)/manta demo

# The simulation uses all processors by itself. What runs on Ray runs alone.
test: $(READY) lint
	$(BIN)/python -m pytest -m "not long" tests/sim
	$(BIN)/python -m pytest -m "not long" tests/unit -n auto
	$(BIN)/python -m pytest -m "not long" tests/integration tests/e2e

# The same tests but the simulation, half as long again.
coverage: $(READY)
	$(BIN)/python -m pytest -m "not long" tests/unit -n auto --cov --cov-report=
	$(BIN)/python -m pytest -m "not long" tests/integration tests/e2e \
	  --cov --cov-append --cov-report=term:skip-covered

test-long: $(READY)
	$(BIN)/python -m pytest -m long

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 14)))' || \
	  { echo "Manta needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) -V 2>&1). Set PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) lacks ensurepip, so it cannot make a virtual environment: on Debian, apt install python3-venv" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-build.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $(READY)

# After a change of the dependencies in pyproject.toml.
lock: $(READY)
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header --quiet -o requirements.lock

clean:
	rm -rf $(VENV) .manta .mypy_cache .ruff_cache .import_linter_cache .coverage
