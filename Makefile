# Four commands; each makes what it needs. The environment is .venv, built again when its description changes.
#   make demo    tune the embedded model and see the verdict       make test    the default tests
#   make check   style, imports, types                             make bench   speed, side by side with peers

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTEST_ARGS ?=
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check bench wheel clean

demo: .venv/.installed
	$(BIN)/luthier demo

test: export OMP_NUM_THREADS = 1
test: export HF_HUB_OFFLINE = 1
test: export HF_DATASETS_OFFLINE = 1
test: .venv/.installed-dev
	$(BIN)/python -m pytest -q -n 2 $(PYTEST_ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: .venv/.installed-dev
	for each in bench/*.py; do $(BIN)/python $$each || exit 1; done

wheel: .venv/.installed-dev
	rm -rf dist && $(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf .venv dist build

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no python3 found; luthier needs Python 3.11 or newer" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: luthier needs Python 3.11 or newer; say which: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable '.[dev]'
	@touch $@ .venv/.installed
