# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check slow clean
.DELETE_ON_ERROR:

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[cpu,train]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -e '.[cpu,train,timm,track,rtx,openvino,edge,release,lora,hf,smp,dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/vcompress demo

# In two processes; what measures real time runs alone after them.
test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 -m 'not slow and not gpu and not timing'
	$(BIN)/python -m pytest -m 'timing and not slow and not gpu'

# What CI adds to the tests: style and types.
check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types/vcompress
	ln -s $(CURDIR)/bench $(CURDIR)/compress $(CURDIR)/export build/types/vcompress/
	$(BIN)/mypy

slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf $(VENV) build *.egg-info
