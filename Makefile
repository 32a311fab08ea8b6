# Everything a fresh machine needs is installed by `make setup`; every other target depends on it.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
STAMP := $(VENV)/.installed
INTEGRATIONS := .venv-integrations
FLOWER := .venv-flower
TORCHVISION := .torchvision

.PHONY: setup evidence demo test check ci test-branches gpu test-integrations test-flower docs dist clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt requirements-curvature.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,text,dev,bench,docs]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
		-r requirements-curvature.txt
	touch $(STAMP)

demo: setup
	$(BIN)/lowland compare --task digits --methods plain sam sampa looksam micro-sam arsam --seeds 5

# The experiments of docs/plan_of_experiments.md, or those named by EVIDENCE; they go on where they were interrupted.
evidence: setup
	$(BIN)/python benchmarks/evidence.py $(EVIDENCE)

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

# The arithmetic that a GPU runs, on a CPU: everything that computes steps is tested with the branches of a GPU, too.
test-branches: setup
	LOWLAND_BRANCHES=gpu OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder \
		$(addprefix tests/,core engine executors methods official surroundings)

# What only a GPU can show, in ten minutes, as a table and as gpu.json; without a GPU it says what it skips.
gpu: setup
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR):$(CURDIR)/tests $(BIN)/python -m gpu $(GPU)

# Training frameworks have an environment of their own: nothing else needs them, and they pin much.
test-integrations: $(INTEGRATIONS)/.installed $(TORCHVISION)/.installed
	$(INTEGRATIONS)/bin/python -m pip check
	OMP_NUM_THREADS=1 $(INTEGRATIONS)/bin/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder \
		--durations=10 tests/integrations
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(TORCHVISION) $(INTEGRATIONS)/bin/python -m pytest -q -rs \
		$(addprefix tests/integrations/,test_timm.py test_fastai.py test_page.py::test_timm test_page.py::test_fastai)

$(INTEGRATIONS)/.installed: pyproject.toml constraints.txt constraints-integrations.txt
	test -x $(INTEGRATIONS)/bin/python || $(PYTHON) -m venv $(INTEGRATIONS)
	$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-c constraints-integrations.txt -e '.[integrations]'
	touch $@

# timm and fastai need torchvision, which needs another torch, and breaks other frameworks where it does not load. So
# they have a folder that only their own tests see. Without them these tests are skipped.
$(TORCHVISION)/.installed: requirements-torchvision.txt constraints.txt | $(INTEGRATIONS)/.installed
	rm -rf $(TORCHVISION) && mkdir $(TORCHVISION)
	$(INTEGRATIONS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(TORCHVISION) \
		-c constraints.txt -r requirements-torchvision.txt || echo "no torchvision: tests of timm and fastai are skipped"
	touch $@

# Flower has one, too: it wants older packages than torch's and lowland's other tools.
test-flower: $(FLOWER)/.installed
	$(FLOWER)/bin/python -m pip check
	OMP_NUM_THREADS=1 $(FLOWER)/bin/python -m pytest -q --durations=10 tests/flower

$(FLOWER)/.installed: pyproject.toml constraints-flower.txt
	test -x $(FLOWER)/bin/python || $(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-flower.txt -e '.[federated]'
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
	rm -rf $(VENV) $(INTEGRATIONS) $(FLOWER) $(TORCHVISION) build dist site .pytest_cache .mypy_cache .ruff_cache
