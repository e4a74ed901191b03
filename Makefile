# make train, make test: each sets up .venv first where needed. Needs Python 3.10 or newer and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help

.PHONY: help
help:  ## Show the commands.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

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
	$(BIN)/python scripts/train.py --out $(RUN) $(ARGS)
	$(BIN)/python scripts/audit.py $(RUN) --out $(RUN)/audit --processes 2

.PHONY: test
test: setup  ## Check style, types, imports and behaviour.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto

.PHONY: bench
bench: setup  ## Time the scan and the training loop against nn.LSTM, ncps and SB3's policies.
	$(BIN)/python scripts/bench.py

.PHONY: gpu
gpu: setup  ## Test the CUDA kernels on the GPU of this machine, and time them; writes results/bench_gpu.json.
	$(BIN)/python scripts/gpu_check.py $(ARGS)

# Versions of Triton, each in a folder of its own that comes before everything else; 3.6 interprets with older NumPy only.
TRITONS := 3.6.0 3.7.1

build/triton-%: | $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.part triton==$* numpy==2.3.5
	mv $@.part $@

.PHONY: gpu-compile
gpu-compile: $(TRITONS:%=build/triton-%)  ## Interpret the CUDA kernels, and compile them for sm_90, under each Triton.
	for version in $(TRITONS); do \
		PYTHONPATH=build/triton-$$version $(BIN)/python -m pytest -n auto -m 'gpu_compile or not gpu_compile' \
			tests/kernels/test_triton.py || exit 1; \
		PYTHONPATH=build/triton-$$version $(BIN)/python -m tests.kernels.triton_cost || exit 1; \
	done

.PHONY: clean
clean:  ## Remove .venv and caches; runs stay.
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
