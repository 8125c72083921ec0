# The tests with the versions that Colab has (constraints.txt), in environments of their own; included by the Makefile.
# make test-colab         all of them
# make test-colab-short   those that touch the libraries' interfaces: what .ci/run asks for
.PHONY: test-colab test-colab-short test-colab-rest test-torch-free

COLAB := .venv-colab
TORCH_FREE := .venv-colab-313
# Colab's Python. A shim of pyenv stands on the path and cannot run while another version is chosen.
PYTHON313 ?= $(shell python3.13 -c 'import sys; print(sys.executable)' 2>/dev/null || \
	ls "$$(pyenv root 2>/dev/null)"/versions/3.13*/bin/python 2>/dev/null | tail -1)
COLAB_PIP := -m pip --disable-pip-version-check install --quiet

test-colab: $(COLAB)/.test
	@echo "== Running the tests with Colab's versions."
	$(COLAB)/bin/python -m pytest -m "not slow and not browser" -n 2 --dist loadfile --no-loadscope-reorder
	@$(MAKE) --no-print-directory test-colab-rest

# Files that between them use every interface of diffusers, transformers, peft, pillow, numpy, typer and ipywidgets.
test-colab-short: $(COLAB)/.test
	@echo "== Running the tests that touch the libraries, with Colab's versions."
	$(COLAB)/bin/python -m pytest -m "not slow and not browser" -n 2 --dist loadfile --no-loadscope-reorder @tests/colab/short.args
	@$(MAKE) --no-print-directory test-colab-rest

test-colab-rest: $(COLAB)/.test
	@echo "== Using the forms in classic Notebook 6 with ipywidgets 7."
	$(COLAB)/bin/python -m pytest tests/test_browser_classic.py
	@if [ -n "$(PYTHON313)" ]; then $(MAKE) --no-print-directory test-torch-free; \
		else echo "== Skipped: no Python 3.13 here for the tests that need no torch (make PYTHON313=/path/to/python3.13)"; fi

# Without an index: a test that would install something must not change what is looked at.
test-torch-free: $(TORCH_FREE)/.test
	@echo "== Running the tests that need no torch, on Colab's Python 3.13."
	PIP_NO_INDEX=1 $(TORCH_FREE)/bin/python -m pytest -m "not slow and not browser" -n 2 --dist loadfile --no-loadscope-reorder @tests/colab/torch_free.args

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
