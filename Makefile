# make demo   a search on real experts, from nothing to a table        make test           the tests of the package
# make lint   lint, format, imports, types                             make test-scripts   those of scripts/
# make clean  removes what the others made                             make fast           those that take seconds
# make test-ray  workers on a cluster of Ray's                         make test-triton    the kernel of GPUs, on a CPU
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# On a busy machine threads that spin while they wait make everything up to three times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-scripts test-ray test-triton fast lint clean
.DELETE_ON_ERROR:

$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "evomerge needs Python 3.11 or later; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The small form of the text suite (three experts, pip alone), a CMA-ES search on it, and the table of the report split.
# 25 items for each candidate find what 100 found, and bfloat16 ranks them as float32 does (experiments/affordable).
DEMO_SUITE  ?= --small
DEMO_SEARCH ?= budget=100 fitness.items=25 fitness.approximate=auto
DEMO_DIR    ?= suites/demo
DEMO_RUN    ?= runs/demo
demo: $(VENV)/.run
	$(BIN)/python scripts/build_suite.py text --out $(DEMO_DIR) $(DEMO_SUITE)
	$(BIN)/evomerge search model=text model.suite=$(DEMO_DIR) searcher=cmaes space=layer $(DEMO_SEARCH) hydra.run.dir=$(DEMO_RUN)

# worksteal gives each worker files in a row, so that what a file's tests share is built once. Three workers on two cores:
# many tests wait for processes that they start.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 3 --dist worksteal --ignore=tests/scripts

test-scripts: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/scripts

# Ray is 260 MB, so other tests do without; its cluster has nodes with GPUs in name only.
test-ray: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	$(BIN)/python -m pytest tests/search/test_ray.py

# Triton is 290 MB, so other tests do without; its interpreter runs the kernel of GPUs on a CPU.
test-triton: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,triton]'
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/merging/test_gpu_kernels.py

fast: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --ignore=tests/scripts -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) build dist .cache
