# The two commands: `make demo` and `make test`. Each makes .venv when it is missing and reuses it after.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# tests of one file stay in one process: they share what is slow to make
PARALLEL := -n auto --dist loadfile
READY := $(VENV)/.ready

.PHONY: demo test check bench format clean

demo: $(READY)
	$(BIN)/offramp demo --out offramp-demo

test: $(READY)
	$(BIN)/python -m pytest -q $(PARALLEL)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(PARALLEL) --cov --cov-report=term

bench: $(READY)
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
