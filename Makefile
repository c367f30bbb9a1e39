# Everything runs in .venv, which the first target that needs it makes. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup help demo demo-arflow demo-flowar test test-all bench guard lint docs notebooks format clean

setup: .venv/installed ## make .venv with everything in it

help: ## these lines
	@awk -F ':.*## ' '/^[a-z-]+:.* ## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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
demo: setup ## train ARFlow and FlowAR on digits, draw and score
	$(MAKE) --no-print-directory --jobs=2 demo-arflow demo-flowar

demo-arflow demo-flowar: demo-%: setup
	$(BIN)/fluvial train digits-$*
	$(BIN)/fluvial sample runs/digits-$*
	$(BIN)/fluvial score runs/digits-$*

# Idle OpenMP threads that spin slow down whatever else runs on a small machine.
test test-all: export OMP_WAIT_POLICY ?= PASSIVE
test: setup ## the quick tests
	$(BIN)/python -m pytest -m "not slow and not gpu"

# Also what takes more than a few seconds each: many ranks, faults at every file operation, real images.
test-all: setup ## all tests, as CI runs them
	$(BIN)/python -m pytest

# Alone on the machine, on all of its cores: less than ten minutes.
bench: export OMP_WAIT_POLICY ?= PASSIVE
bench: setup ## the speed of training and sampling on this machine
	$(BIN)/python benchmarks/cpu.py

# Whether training and sampling have become slower against matrix products: two minutes.
guard: setup ## whether training and sampling have become slower
	$(BIN)/python benchmarks/guard.py

lint: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Every warning is an error: a page that no list has, a link that leads nowhere, a docstring that cannot be read.
docs: setup ## the site of the documentation, in docs/_build/html
	rm -rf docs/reference
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

# Each in under three minutes on one core. What they print and draw is committed beside the text.
notebooks: setup ## execute examples/notebooks/*.py and write them as .ipynb
	folder=$$(mktemp -d) && $(BIN)/jupytext --to ipynb --execute --run-path $$folder examples/notebooks/*.py && rm -r $$folder

format: setup ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and runs
	rm -rf .venv runs docs/_build docs/reference .pytest_cache .ruff_cache
