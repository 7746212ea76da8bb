# Everything runs inside .venv, which `make install` creates from constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-browser check format bench bench-guard docs clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP) ## create .venv and install collapsar with the dev extra; nothing when up to date

$(STAMP): pyproject.toml studies/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "collapsar needs Python 3.11 or newer; say which one: make PYTHON=python3.12 install"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' --editable ./studies
	@touch $(STAMP)

demo: install ## train, measure, solve and compare on imbalanced digits (under a minute)
	$(BIN)/collapsar demo

# One worker a core, one thread a worker: two threads each wait for one another twenty times longer than they compute.
test test-slow: export OMP_NUM_THREADS = 1
# Compiling the tests anew takes a third of starting a worker: their bytecode is kept, whatever the shell says.
test test-slow: export PYTHONDONTWRITEBYTECODE =

test: install ## the tests (slow ones: make test-slow)
	$(BIN)/pytest -n auto -m "not slow and not gpu and not browser"

test-slow: install ## only the tests that take more than 10 seconds
	$(BIN)/pytest -n auto -m "slow and not gpu and not browser"

test-browser: install ## the pages in headless Chromium (Debian: apt install chromium)
	@command -v chromium chromium-browser google-chrome >/dev/null || { echo "make test-browser needs Chromium: install it (Debian: apt install chromium), then try again"; exit 2; }
	$(BIN)/pytest -m browser

check: install ## formatting, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: install ## rewrite the code in the house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install ## benchmarks, ratios within one run; the page docs/benchmarks.md is made of them
	@mkdir -p .benchmarks
	$(BIN)/pytest benchmarks -o python_files="bench_*.py" -o addopts="--import-mode=importlib" -p no:xdist -s --benchmark-json=.benchmarks/run.json; \
	status=$$?; $(BIN)/python benchmarks/table.py .benchmarks/run.json && exit $$status

bench-guard: install ## a minute of benchmarks, as ratios; fails where one is 1.3 times what was recorded
	$(BIN)/python benchmarks/guard.py

docs: install ## the documentation site, into docs/_build/html; warnings are errors
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/sphinx-build --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean: ## remove what the other targets made
	rm -rf .venv docs/_build build dist runs .pytest_cache .ruff_cache .benchmarks .import_linter_cache .hypothesis
