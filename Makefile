# Two commands do all the set-up: `make demo` runs the main job, `make test` runs the tests. `make test-all` runs those that
# `make test` leaves out: real servers and browsers, trainings of real models, clusters, the whole grids of some tests, and the pages of the docs.
#
# TORCH_INDEX=URL takes torch from another index. Without it tools/torch_index.py chooses: the CPU build where there is no
# NVIDIA device and pip is not told where to look, since the plain index gives a CUDA build of several gigabytes there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH_INDEX ?=
DEMO ?=

.PHONY: demo test test-all test-wheel lint docs build release-check install dev clean

demo: $(VENV)/.installed
	$(BIN)/gecko demo $(DEMO)

# Two files of tests at a time, with one thread each: two processes of two threads would wait for each other.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/.dev
	$(PYTEST)

test-all: $(VENV)/.stores docs
	$(PYTEST) -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

docs: $(VENV)/.installed
	@$(PIP) install -qq --prefer-binary -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel is made from the source archive, so a file that is missing from that is missing here, too.
build: $(VENV)/.python
	@$(PIP) install -qq build
	rm -rf dist
	$(BIN)/python -m build --quiet --outdir dist

# The packed wheel, outside of the checkout; one of the tests of `make test-all`.
test-wheel: $(VENV)/.dev
	$(PYTEST) -m slow tests/test_wheel.py

# TAG=v1.2.3: whether a tag is that of the version, and CHANGELOG.md has a section for it.
release-check: $(VENV)/.python
	@$(BIN)/python tools/release_check.py "$$TAG"

install: $(VENV)/.installed
dev: $(VENV)/.dev

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first and alone, so that no other package pulls in a larger build.
$(VENV)/.torch: $(VENV)/.python constraints.txt
	@echo "installing torch into $(VENV)"
	@torch="$$(grep '^torch==' constraints.txt)" && \
	index="$$($(BIN)/python tools/torch_index.py "$$torch" $(TORCH_INDEX))" && \
	$(PIP) install -qq $$index "$$torch"
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	@echo "installing gecko and what it needs: a minute or two"
	@$(PIP) install -qq --prefer-binary -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.installed
	@echo "installing what the tests need"
	@$(PIP) install -qq --prefer-binary -c constraints.txt -e '.[dev]'
	touch $@

# 270 MB that only tests/test_stores.py needs.
$(VENV)/.stores: $(VENV)/.dev
	@echo "installing the vector stores that the tests load"
	@$(PIP) install -qq --prefer-binary -c constraints.txt -e '.[test-all]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
