# Every target does all its own set-up; only Python 3.11+ (with venv) and make are needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test check bench pictures lock clean help

help:            ## what there is
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/'

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(VENV)/ready  ## train, re-tune badly, re-tune well, audit, PDF: in runs/demo
	$(BIN)/xvision demo --out runs/demo

test: $(VENV)/ready check  ## lint, types, import rules, then the tests, one file per core
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

check: $(VENV)/ready  ## lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/ready  ## slow comparisons with peers and long statistical checks
	$(BIN)/python -m pytest -m benchmark

pictures: demo  ## the README's pictures, from the demo's run (needs chromium and poppler-utils)
	$(BIN)/python docs/pictures.py runs/demo/runs/retuned runs/demo/report.pdf

lock: $(VENV)/ready  ## pin what is installed now
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' > requirements.lock

clean:           ## remove the virtual environment and caches, never runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
