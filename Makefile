# Everything runs in .venv, which the first target that needs it makes. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo demo-arflow demo-flowar test test-all bench guard lint format clean

setup: .venv/installed

# The oracles have a folder of their own, which only the tests that ask for it see: torchvision does not import beside a
# CPU-only torch, and breaks the libraries that would use it. Without them those tests skip.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	-PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/oracles torch-fidelity torchvision
	touch $@

# Side by side, one thread each: the models are so small that a second thread hardly helps, and waiting for one that is
# busy elsewhere hurts.
demo: export OMP_NUM_THREADS ?= 1
demo: setup
	$(MAKE) --no-print-directory --jobs=2 demo-arflow demo-flowar

demo-arflow demo-flowar: demo-%: setup
	$(BIN)/fluvial train digits-$*
	$(BIN)/fluvial sample runs/digits-$*
	$(BIN)/fluvial score runs/digits-$*

# Idle OpenMP threads that spin slow down whatever else runs on a small machine.
test test-all: export OMP_WAIT_POLICY ?= PASSIVE
test: setup
	$(BIN)/python -m pytest -m "not slow and not gpu"

# Also what takes more than a few seconds each: many ranks, faults at every file operation, real images.
test-all: setup
	$(BIN)/python -m pytest

# Alone on the machine, on all of its cores: less than ten minutes.
bench: export OMP_WAIT_POLICY ?= PASSIVE
bench: setup
	$(BIN)/python benchmarks/cpu.py

# Whether training and sampling have become slower against matrix products: two minutes.
guard: setup
	$(BIN)/python benchmarks/guard.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache
