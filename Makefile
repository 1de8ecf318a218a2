# Every target bootstraps its own virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# `python -m` finds the site's extensions in tools/; the variable silences a notice about MkDocs 2.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.PHONY: setup demo test test-slow check format docs site clean
.DEFAULT_GOAL := demo

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/robustkd demo

# A process for each core, with one thread in each.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(SITE) --site-dir build/site

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python -m tools.docs_tables
	$(BIN)/python -m tools.cli_reference

site: setup
	$(SITE)

clean:
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
