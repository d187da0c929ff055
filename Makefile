# make help      these lines
# make figures   execute every notebook's quick profile into build/ and figures/
# make test      all tests, style checks and the committed notebooks
# make lab       JupyterLab
# make notebooks refresh the committed notebooks, and README's findings, from the committed results
# make bench     speed ratios, written to benchmarks/results.md
# make site      notebooks, figures and reference as a static site in build/site
# make lock      refresh requirements.lock
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
NOTEBOOKS = $(sort $(wildcard notebooks/*.ipynb))

.PHONY: help figures test lint lab notebooks bench site lock install
.DEFAULT_GOAL := figures

install: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	  f"hardtrain needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]} (make PYTHON=...)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

help:
	@sed -n 's/^# make/make/p' Makefile

figures: $(INSTALLED)
	$(BIN)/python -m hardtrain.report.execute --train $(NOTEBOOKS)

test: export HARDTRAIN_DEVICE ?= cpu
test: $(INSTALLED) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/test_notebooks.py tests hardtrain
	$(BIN)/python -m hardtrain.report.execute --check $(NOTEBOOKS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: $(INSTALLED)
	$(BIN)/jupyter lab notebooks

notebooks: $(INSTALLED)
	$(BIN)/python -m hardtrain.report.execute --refresh $(NOTEBOOKS)
	$(BIN)/python -m hardtrain.report.claims

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

site: $(INSTALLED)
	$(BIN)/python -m sphinx -b html -q -W --keep-going -c site . build/site

lock: $(INSTALLED)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --upgrade --quiet --no-header --no-annotate --no-emit-index-url --output-file requirements.lock
