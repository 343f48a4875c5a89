# Every verb makes and reuses .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
# Warnings of the package installer about its own version are of no use to a reader.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export TOKENIZERS_PARALLELISM := false

.PHONY: repro test lint notebook organism reference bench lock

.venv/installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(PIP) --constraint requirements.lock torch
	$(PIP) --constraint requirements.lock --editable '.[notebook,docs,dev,distributed,endpoint]'
	@touch $@

repro: .venv/installed  ## the paper's argument on the built-in model, in five minutes
	$(BIN)/vlm-guard repro

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow and not gpu"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebook: .venv/installed  ## executes the notebook in place, from results/reference/
	PYTHONWARNINGS="ignore:IProgress not found" $(BIN)/jupyter-execute --inplace paper_repro.ipynb

organism: .venv/installed  ## trains the built-in model from nothing, and measures it
	$(BIN)/python -m studies.organism

reference: .venv/installed  ## writes what is committed under results/reference/
	$(BIN)/vlm-guard repro --scale quick --out results/reference/quick
	$(BIN)/vlm-guard repro --scale full --out results/reference/full

bench: .venv/installed
	$(BIN)/python -m tests.speed

lock:  ## pins what is installed now
	echo '# Complete pins, used as constraints (pip install -c). Made by `make lock`.' > requirements.lock
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed -E 's/\+cpu$$//' >> requirements.lock
