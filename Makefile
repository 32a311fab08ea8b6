# Everything a fresh machine needs is installed by `make setup`; every other target depends on it.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
STAMP := $(VENV)/.installed
INTEGRATIONS := .venv-integrations

.PHONY: setup demo test check ci integrations docs dist clean

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

# Training frameworks have an environment of their own: nothing else needs them, and they pin much.
integrations: $(INTEGRATIONS)/.installed
	OMP_NUM_THREADS=1 $(INTEGRATIONS)/bin/python -m pytest -q --durations=10 tests/integrations

$(INTEGRATIONS)/.installed: pyproject.toml constraints.txt constraints-integrations.txt
	test -x $(INTEGRATIONS)/bin/python || $(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-c constraints-integrations.txt -e '.[integrations]'
	touch $@

docs: setup
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Another interpreter than that of .venv: make dist TRY=python3.12
TRY ?= $(BIN)/python

dist: setup
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python tools/try_dist.py dist --python $(TRY)

clean:
	rm -rf $(VENV) $(INTEGRATIONS) build dist site .pytest_cache .mypy_cache .ruff_cache
