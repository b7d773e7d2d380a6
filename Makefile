# make demo        install into .venv and see the product work (about five minutes on two cores)
# make test        install into .venv and test it (under ten minutes on two cores)
# make test-slow   the tests that take longer: killed runs, many ranks, whole studies
# make lint        ruff and mypy
# make docs        the documentation as pages that need no network: open site/index.html

VENV := .venv
BIN := $(VENV)/bin
# the files that take longest begin first (tests/conftest.py), not those with most tests
PARALLEL := -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
EXTRAS := dev,torchjd,instructions,reasoning-gym,peft,smollm2,judge
# the first of these that is Python 3.11 or newer
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11 python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# Before torch is imported: spinning OpenMP threads of two busy processes slow each other more than fifteenfold.
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
# Compiled once: without files of bytecode every process that tests start compiles all of it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow lint format docs clean

demo: $(VENV)/.installed
	$(BIN)/counterpoint demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow --timeout 900 $(PARALLEL)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.created:
	@for python in $(PYTHONS); do \
	  if $$python -c '$(NEW_ENOUGH)' 2>/dev/null; then $$python -m venv $(VENV) && touch $@ && exit 0; fi; \
	done; test -e $@ || { echo "counterpoint needs Python 3.11 or newer with venv; none was found. Set PYTHON=..."; exit 1; }

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/.created pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist runs site
