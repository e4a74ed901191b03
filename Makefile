# make train, make test: each sets up .venv first where needed. Needs Python 3.10 or newer and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help

.PHONY: help
help:  ## Show the commands.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: setup
setup: $(READY)  ## Create .venv with every dependency, pinned by constraints.txt.

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: ncp_rl needs Python 3.10 or newer, $(PYTHON) is $$($(PYTHON) -V); set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

.PHONY: train
train: RUN := runs/pendulum__$(shell date +%s)
train: setup  ## Train an NCP on ncp/PendulumNoVel-v1, evaluate, record and audit it.
	$(BIN)/ncp-rl train --out $(RUN) $(ARGS)
	$(BIN)/ncp-rl audit $(RUN) --out $(RUN)/audit --processes 2

.PHONY: test
test: setup  ## Check style, types, imports and behaviour.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto

.PHONY: bench
bench: setup  ## Time the scan and the training loop against nn.LSTM, ncps and SB3's policies.
	$(BIN)/ncp-rl bench --parts scan step loop recording memory cars deployed

.PHONY: clean
clean:  ## Remove .venv and caches; runs stay.
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
