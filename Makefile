# The two commands: `make demo` and `make test`. Each makes .venv when it is missing and reuses it after.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# tests of one file stay in one process: they share what is slow to make
PARALLEL := -n auto --dist loadfile
READY := $(VENV)/.ready
# `make test COVERAGE=1` also measures which lines and branches the tests run
COVERAGE ?=

.PHONY: demo test lint check bench format clean

demo: $(READY)
	$(BIN)/offramp demo --out offramp-demo

test: $(READY)
	$(BIN)/python -m pytest -q $(PARALLEL) $(if $(COVERAGE),--cov --cov-report=term)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(MAKE) test COVERAGE=1

bench: $(READY)
	$(BIN)/python bench/startup
	$(BIN)/python bench/runtime engine
	$(BIN)/python bench/search --generated

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) offramp-demo .mypy_cache .pytest_cache .ruff_cache .hypothesis

# made again when what is to be installed changes
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,dev]"
	touch $@
