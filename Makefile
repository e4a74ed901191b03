# make train, make test, make docs: each sets up .venv first where needed. Needs Python 3.10 or newer and make.

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
	$(BIN)/ncp-rl train --out $(RUN) $(ARGS)
	$(BIN)/ncp-rl audit $(RUN) --out $(RUN)/audit --processes 2

.PHONY: driver
driver: RUN := runs/driver__$(shell date +%s)
# Memory that a minibatch of images frees is kept for the next one: glibc would give it back, page by page.
driver: export MALLOC_TRIM_THRESHOLD_ := 2000000000
driver: export MALLOC_MMAP_THRESHOLD_ := 1000000000
driver: setup  ## Teach 19 neurons to keep a lane by camera, drive fresh roads, film and audit them: half an hour.
	$(BIN)/python scripts/driver.py --levels --table $(RUN)/driver.csv --runs $(RUN)
	$(BIN)/python scripts/evaluate.py $(RUN)/ncp__0 --episodes 3 --video $(RUN)/video
	$(BIN)/python scripts/audit.py $(RUN)/ncp__0 --images --episodes 14 --disturbances --faults --out $(RUN)/audit

.PHONY: test
test: setup  ## Check style, types, imports, behaviour and pages.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n auto

# The report's tests open its page in a real browser; exported C code is compiled, checked, and run as on a chip.
TOOLS := gcc g++ cppcheck gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm

.PHONY: tools
tools:  ## Install what the tests call beside Python: Chromium, C compilers, QEMU (Debian, as root).
	@command -v chromium >/dev/null \
		|| { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y chromium; }
	@dpkg-query --show $(TOOLS) >/dev/null 2>&1 \
		|| { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(TOOLS); }

.PHONY: test-lowest
test-lowest:  ## Run the tests with the lowest versions that pyproject.toml allows, in .venv-lowest.
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)-lowest/bin/uv pip install --python $(VENV)-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	$(VENV)-lowest/bin/python -m pytest -n auto -W default

.PHONY: test-newest
test-newest:  ## Run the tests with the newest version of everything, in .venv-newest.
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --editable '.[dev]'
	$(VENV)-newest/bin/python -m pytest -n auto -W default

.PHONY: docs
docs: setup  ## Build the pages as a site into build/site, without a warning.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

.PHONY: wheel
wheel: setup  ## Build the wheel into dist/.
	$(BIN)/python -m hatchling build --target wheel

.PHONY: bench
bench: setup  ## Time the scan and the training loop against nn.LSTM, ncps and SB3's policies.
	$(BIN)/ncp-rl bench --parts scan step loop recording memory cars deployed

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

.PHONY: soak
soak: setup  ## Record and monitor 64 lane keepers for half an hour; writes results/soak.json.
	$(BIN)/python scripts/soak.py $(ARGS)

.PHONY: rl-zoo
rl-zoo:  ## Train a policy with rl_zoo3 from our settings and replay it, in .venv-rl-zoo.
	$(PYTHON) -m venv $(VENV)-rl-zoo
	$(VENV)-rl-zoo/bin/python -m pip install --quiet --disable-pip-version-check \
		"$$(grep '^torch==' constraints.txt)" rl_zoo3 requests .
	$(VENV)-rl-zoo/bin/python -m tests.rl_zoo build/rl-zoo

.PHONY: clean
clean:  ## Remove environments and caches; runs stay.
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest $(VENV)-rl-zoo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
