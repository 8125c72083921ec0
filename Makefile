# make demo   the whole job on the miniature model, with no GPU and no download of models
# make test   everything that must be true before a change is taken
# Both make .venv and install what they need. A Linux machine without a GPU: make demo PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
# Two threads fighting for one tiny tensor cost more than they bring.
export OMP_NUM_THREADS ?= 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-slow test-colab test-colab-short test-colab-rest test-torch-free settings check help
help:
	@sed -n 's/^# //p' Makefile | head -3

demo: $(VENV)/.base
	@echo "== Running the demo: lace photographs drawn by program → LoRA → refined designs → report. About 5 minutes."
	OMP_NUM_THREADS=2 $(BIN)/lace-lora demo

test: $(VENV)/.test check
	@echo "== Running the tests."
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile
	@echo "== Running the notebooks against their stored outputs."
	$(BIN)/python -m pytest --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg -p no:warnings notebooks

check: $(VENV)/.test
	@echo "== Checking style and types."
	$(BIN)/ruff check .
	$(BIN)/mypy

test-slow: $(VENV)/.test
	@echo "== Running the slow tests."
	$(BIN)/python -m pytest -m slow

# Writes everything that is generated from the declarations of the settings.
settings: $(VENV)/.base
	$(BIN)/python -m tests.generated

$(VENV)/bin/python:
	@echo "== Making $(VENV)."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older. Run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "Python's venv is missing. On Debian or Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/.base: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "== Installing torch and the libraries (once; a few minutes)."
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.base
	@echo "== Installing the notebooks' and the tests' libraries (once)."
	$(PIP) -e ".[notebooks,training,test]"
	@touch $@

# -- Colab's own versions: tests/colab/constraints.txt --

COLAB := .venv-colab
TORCH_FREE := .venv-colab-313
# Colab's Python. A shim of pyenv stands on the path and cannot run while another version is chosen.
PYTHON313 ?= $(shell python3.13 -c 'import sys; print(sys.executable)' 2>/dev/null || \
	ls "$$(pyenv root 2>/dev/null)"/versions/3.13*/bin/python 2>/dev/null | tail -1)
COLAB_PIP := -m pip --disable-pip-version-check install --quiet

test-colab: $(COLAB)/.test
	@echo "== Running the tests with Colab's versions."
	$(COLAB)/bin/python -m pytest -m "not slow" -n 2 --dist loadfile
	@$(MAKE) --no-print-directory test-colab-rest

# Files that between them use every interface of diffusers, transformers, peft, pillow, numpy, typer and ipywidgets.
test-colab-short: $(COLAB)/.test
	@echo "== Running the tests that touch the libraries, with Colab's versions."
	$(COLAB)/bin/python -m pytest -m "not slow" -n 2 --dist loadfile @tests/colab/short.txt
	@$(MAKE) --no-print-directory test-colab-rest

test-colab-rest: $(COLAB)/.test
	@echo "== Using the forms in classic Notebook 6 with ipywidgets 7."
	$(COLAB)/bin/python -m pytest -m slow tests/test_browser_classic.py
	@if [ -n "$(PYTHON313)" ]; then $(MAKE) --no-print-directory test-torch-free; \
		else echo "== Skipped: no Python 3.13 here for the tests that need no torch (make PYTHON313=/path/to/python3.13)"; fi

# Without an index: a test that would install something must not change what is looked at.
test-torch-free: $(TORCH_FREE)/.test
	@echo "== Running the tests that need no torch, on Colab's Python 3.13."
	PIP_NO_INDEX=1 $(TORCH_FREE)/bin/python -m pytest -m "not slow" -n 2 --dist loadfile @tests/colab/torch_free.txt

$(COLAB)/.test: tests/colab/constraints.txt constraints.txt pyproject.toml
	@echo "== Making $(COLAB): what Colab has, then Lace LoRA as it is installed there (a minute or two)."
	@$(PYTHON) -m venv --clear $(COLAB)
	$(COLAB)/bin/python $(COLAB_PIP) $$(grep '^pip==' $<)
	$(COLAB)/bin/python $(COLAB_PIP) $$(grep '^torch==' $<)
	$(COLAB)/bin/python $(COLAB_PIP) -r $<
	$(COLAB)/bin/python -m tests.colab.versions
	$(COLAB)/bin/python -m tests.colab.versions constraints > $(COLAB)/constraints.txt
	$(COLAB)/bin/python $(COLAB_PIP) -c $(COLAB)/constraints.txt -e ".[notebooks,training,test]" playwright
	$(COLAB)/bin/python -m tests.colab.versions
	@touch $@

$(TORCH_FREE)/.test: $(COLAB)/.test
	@echo "== Making $(TORCH_FREE): Python 3.13, no torch."
	@$(PYTHON313) -m venv --clear $(TORCH_FREE)
	$(COLAB)/bin/python -m tests.colab.versions torch-free > $(TORCH_FREE)/wanted.txt
	$(TORCH_FREE)/bin/python $(COLAB_PIP) $$(grep '^pip==' tests/colab/constraints.txt)
	$(TORCH_FREE)/bin/python $(COLAB_PIP) -c $(COLAB)/constraints.txt -r $(TORCH_FREE)/wanted.txt
	$(TORCH_FREE)/bin/python $(COLAB_PIP) --no-deps -e .
	$(TORCH_FREE)/bin/python -m tests.colab.versions
	@touch $@
