# make train   set up .venv once, then the whole road: train, compile, simulate, validate, report (ARGS="--seed 1 ...")
# make test    set up .venv once, then ruff, mypy and all tests
# make clean   remove .venv, runs and caches
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BUDGET ?= 2mb

.PHONY: train test lint setup clean
setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + " (set PYTHON=...)" if sys.version_info < (3, 10) else 0)'
	@start=$$(date +%s); \
	$(PYTHON) -m venv $(VENV) && \
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]' && \
	touch $(STAMP) && echo "set up in $$(( $$(date +%s) - start )) s"

train: $(STAMP)
	$(BIN)/python run_vit_training.py --memory_budget $(BUDGET) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest $(ARGS)

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
