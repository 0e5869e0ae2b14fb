# make demo      an English model learns French on this machine's CPU, in a few minutes
# make test      lint, types, import layers and the fast tests, on every core
# make test-all  the same with every test
# make docs      the documentation, into site/; open site/index.html
# make wheel     the package, into dist/
# make check     lint, types and import layers only
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := src tests benchmarks recipes docs/hooks.py
# Each worker is a process of its own: more threads than cores would only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --durations=15

.PHONY: demo test test-all check docs wheel clean

demo: $(VENV)/installed
	$(BIN)/neutral demo

test: check
	$(PYTEST) -m "not slow"

test-all: check docs
	$(PYTEST)

check: $(VENV)/installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

wheel: $(VENV)/installed-dev
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--wheel-dir dist .

# torch comes first and pinned: asked for by others, a plain "torch" could bring another build.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(PIP) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs site dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
