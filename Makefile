# `make train` and `make test` need Python 3.11-3.13 with its venv module, and make.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
  $$p -c '$(SUPPORTED)' 2> /dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/quickstart
DOCS := .venv-docs
# Of the site: mkdocs or zensical.
BUILDER ?= mkdocs

.PHONY: train test lint docs clean

train: $(VENV)/installed
	$(BIN)/python train.py --config configs/quickstart.py --workdir $(WORKDIR)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: $(DOCS)/installed
	$(DOCS)/bin/python -m tools.site_pages
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m $(BUILDER) build --strict

define CHECK_PYTHON
	@command -v git > /dev/null || { echo "error: git is missing: install it (Debian, Ubuntu: apt install git)" >&2; exit 2; }
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found: install one, or name it by make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "error: $(PYTHON) does not run as Python 3.11, 3.12 or 3.13: name another by make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || { echo "error: $(PYTHON) has no venv module: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
endef

$(VENV)/installed: requirements.txt pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(DOCS)/installed: requirements-docs.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(DOCS)
