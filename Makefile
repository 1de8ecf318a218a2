# Every target makes or completes the virtual environment in .venv. `make demo` installs what users
# need; the other targets add the tools of developers.
PYTHON ?= python3
BIN := .venv/bin
FOR_USERS := .venv/.installed
FOR_DEVELOPERS := .venv/.installed-dev
# `python -m` finds the site's extensions in tools/; the variable silences a notice about MkDocs 2.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.PHONY: setup demo test test-slow check format docs site bench-speed bench-growth clean
.DEFAULT_GOAL := demo

setup: $(FOR_DEVELOPERS)

$(FOR_USERS): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(FOR_DEVELOPERS): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(FOR_USERS) $@

demo: $(FOR_USERS)
	$(BIN)/robustkd demo

# A process for each core, with one thread in each. Hundreds of tests start a command, which takes
# half a second longer if Python may not keep compiled modules.
RUN_TESTS := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto \
	--dist loadfile

test: setup
	$(RUN_TESTS)

test-slow: setup
	$(RUN_TESTS) -m slow

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
	$(BIN)/python -m tools.docs_figures
	$(BIN)/python -m tools.cli_reference

site: setup
	$(SITE)

# In one thread, in a few minutes; best on a machine that does nothing else.
bench-speed: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/speed.py --settings wrn10-28 wrn10-32 wrn16-32 \
		--precisions no bf16 --out benchmarks/results/speed-ratio

# One process after another, in some minutes; on Linux.
bench-growth: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/growth.py --out benchmarks/results/growth

clean:
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
