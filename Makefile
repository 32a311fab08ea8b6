# Everything a fresh machine needs is installed by `make setup`; every other target depends on it.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
STAMP := $(VENV)/.installed

.PHONY: setup demo test check ci docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,dev,bench,docs]'
	touch $(STAMP)

demo: setup
	$(BIN)/lowland compare --task digits --methods plain sam sampa looksam micro-sam arsam --seeds 5

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=10 $(COVERAGE)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -x -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow"

ci: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test COVERAGE='--cov=lowland --cov-report='
	$(BIN)/coverage report --skip-covered --sort=cover

docs: setup
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
