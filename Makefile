# make train   set up .venv once, then the whole road: train, compile, simulate, validate, report (ARGS="--seed 1 ...")
# make test    set up .venv once, then ruff, mypy and all tests (ARGS="-k folder ...")
# make clean   remove .venv and caches; runs stay
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BUDGET ?= 2mb

# An environment that no longer runs (its Python is gone) is made again.
BROKEN := $(shell test ! -e "$(STAMP)" || "$(BIN)/python" -c 'import rich' 2>/dev/null || echo broken)

.PHONY: train test lint setup clean broken
setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt $(BROKEN)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + " (set PYTHON=...)" if sys.version_info < (3, 10) else 0)'
	@test ! -e "$(VENV)" || test -e "$(VENV)/pyvenv.cfg" || { echo "$(VENV) exists and is no virtual environment; it is left alone: set VENV=..." >&2; exit 1; }
	@start=$$(date +%s); \
	$(PYTHON) -m venv $(if $(BROKEN),--clear) "$(VENV)" && \
	"$(BIN)/python" -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]' && \
	touch "$(STAMP)" && echo "set up in $$(( $$(date +%s) - start )) s"

train: $(STAMP)
	"$(BIN)/python" run_vit_training.py --memory_budget "$(BUDGET)" $(ARGS)

lint: $(STAMP)
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m mypy

test: lint
	"$(BIN)/python" -m pytest $(ARGS)

clean:
	test ! -e "$(VENV)/pyvenv.cfg" || rm -rf "$(VENV)"
	rm -rf build/lib build/bdist.* *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
