# Two commands do all the set-up: `make demo` runs the main job, `make test` runs the tests. `make test-all` runs those that
# `make test` leaves out: real servers and browsers, trainings of real models, clusters, and the whole grids of some tests.
#
# TORCH_INDEX=URL takes torch from another index. On most machines the plain package index gives a CUDA build of several
# gigabytes; the CPU build is at https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_INDEX ?=
DEMO ?=

.PHONY: demo test test-all lint docs install dev clean

demo: $(VENV)/.installed
	$(BIN)/gecko demo $(DEMO)

# Two files of tests at a time, with one thread each: two processes of two threads would wait for each other.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/.dev
	$(PYTEST)

test-all: $(VENV)/.dev
	$(PYTEST) -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

docs: $(VENV)/.installed
	@$(PIP) install -qq --prefer-binary -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(VENV)/.installed
dev: $(VENV)/.dev

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first and alone, so that no other package pulls in a larger build.
$(VENV)/.torch: $(VENV)/.python constraints.txt
	@echo "installing torch into $(VENV)"
	@$(PIP) install -qq $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "installing gecko and what it needs: a minute or two"
	@$(PIP) install -qq --prefer-binary -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(PIP) install -qq --prefer-binary -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
