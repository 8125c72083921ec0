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

.PHONY: demo test test-slow screenshots settings address wheel check help
help:
	@sed -n 's/^# //p' Makefile | head -3

demo: $(VENV)/.base
	@echo "== Running the demo: lace photographs drawn by program → LoRA → refined designs → report. About 5 minutes."
	OMP_NUM_THREADS=2 $(BIN)/lace-lora demo

# The notebooks are also clicked in a browser, where chromium is there: apt install chromium.
test: $(VENV)/.test check
	@echo "== Running the tests."
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder
	@echo "== Running the notebooks against their stored outputs."
	$(BIN)/python -m pytest --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg -p no:warnings notebooks

check: $(VENV)/.test
	@echo "== Checking style and types."
	$(BIN)/ruff check .
	$(BIN)/mypy

test-slow: $(VENV)/.test
	@echo "== Running the slow tests."
	$(BIN)/python -m pytest -m slow

# The pictures in the documentation, taken in a browser. To be looked at before they are committed.
screenshots: $(VENV)/.test
	$(BIN)/python -m tests.screenshots

# Writes everything that is generated from the declarations: of the settings, and of the address (lace_lora/address.py).
settings address: $(VENV)/.test
	$(BIN)/python -m tests.generated

# The package as one file, which notebooks in Colab install from Drive.
wheel: $(VENV)/bin/python
	@rm -rf build/lib dist/lace_lora-*.whl
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .
	@echo "== Made $$(ls dist/lace_lora-*.whl). Put it into Google Drive, in the folder lace_lora or at the top (MyDrive)."
	@echo "   Leave its name as it is. The notebooks find it there, and take the newest if there are several."

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
	$(PIP) -e ".[notebooks,training,test,browser]"
	@# Without its triton, which is 200 MB for GPUs alone.
	$(PIP) --no-deps xgrammar apache-tvm-ffi
	@touch $@

# make test-colab, make test-colab-short: the tests with the versions that Colab has.
include tests/colab/rules.mk
