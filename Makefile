# Every target sets itself up: Python 3.10 to 3.13, make and the package index are enough.
#   make test      PYTHON=python3.12 make test      VENV=.venv-3.12 PYTHON=python3.12 make test
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

fits := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
# The first Python that fits, so that a machine whose python3 is too new, but has an older one beside it, works too.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python3.10,\
                        $(shell $(p) -c '$(fits)' 2>/dev/null && echo $(p))) python3)
VENV ?= .venv
# Test processes at a time: on two cores a third one works while others wait for a disk, a server or a kill.
JOBS ?= 3
# TORCH=no leaves torch out of the set-up, a large download; the tests that need it are skipped then, and say so.
TORCH ?= yes
comma := ,
BIN := $(VENV)/bin
version := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
pins := pyproject.toml requirements-dev.txt rockbed/_version.py

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- what people run ---

.PHONY: demo
demo: $(VENV)/.demo ## Train on 336,776 real flights, alone and as two through a server, with kill -9 for both
	@$(BIN)/python -m tests.stale_kernels
	$(BIN)/python -m examples.flights $(ARGS)

.PHONY: test
test: lint ## Lint, types and every test
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --hypothesis-profile=repeatable $(ARGS)

.PHONY: bench
bench: $(VENV)/.bench ## Benchmarks beside np.take, torch and damo-embedding: table and plot
	@$(BIN)/python -m tests.stale_kernels
	$(BIN)/python -m benchmarks $(ARGS)

# CuPy and CUDA's libraries are large: they are fetched where they can be used.
.PHONY: bench-gpu
bench-gpu: $(VENV)/.bench ## The device tier on an NVIDIA GPU, beside its copy bandwidth and torch
	@if nvidia-smi -L >/dev/null 2>&1 && ! $(BIN)/python -c 'import cupy' 2>/dev/null; then \
	  $(install) --editable '.[gpu]'; fi
	$(BIN)/python -m benchmarks.gpu $(ARGS)

.PHONY: walkthrough
walkthrough: $(VENV)/.dev ## Run docs/walkthrough.md; its outputs and figures are made anew
	$(BIN)/python -m tests.notebook docs/walkthrough.md

.PHONY: test-fast
test-fast: $(VENV)/.dev ## The tests without the slow ones
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow" $(ARGS)

.PHONY: test-torch
test-torch: $(VENV)/.dev ## The tests of the torch modules, and those that compare with torch
	$(BIN)/python -m pytest -m torch $(ARGS)

.PHONY: test-gpu
test-gpu: $(VENV)/.dev ## The tests that need an NVIDIA GPU (a large download)
	$(install) --editable '.[gpu]'
	$(BIN)/python -m pytest -m gpu $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev proto-check ## ruff, mypy, and whether rockbed/v1 is what proto/ says
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy rockbed tests benchmarks examples

.PHONY: fmt
fmt: $(VENV)/.dev ## Format, and fix what ruff can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The generator is old on purpose: what it writes runs with every grpcio and protobuf since, and the newest one's would
# refuse older ones. It has an environment of its own because it needs an old protobuf.
protoc = .venv-proto/bin/python -m grpc_tools.protoc -I proto --python_out=$(1) --grpc_python_out=$(1) \
         $(sort $(wildcard proto/rockbed/v1/*.proto))

.PHONY: proto
proto: .venv-proto/.made ## Generate rockbed/v1 from proto/
	$(call protoc,.)

.PHONY: proto-check
proto-check: .venv-proto/.made
	@made=$$(mktemp -d) && trap 'rm -rf "$$made"' EXIT && $(call protoc,"$$made") && \
	  diff -r --exclude=__init__.py --exclude=__pycache__ "$$made/rockbed/v1" rockbed/v1 || \
	  { echo "rockbed/v1 is not what proto/ says: run make proto" >&2; exit 1; }

.PHONY: wheel
wheel: $(VENV)/.dev ## Build the wheel into dist/
	$(BIN)/pip wheel --no-deps --no-build-isolation --wheel-dir dist .

# --- set-up ---

# One stamp for each set of extras; each is made again when the pins, or the Python, change.
install = $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint requirements-dev.txt
$(VENV)/.demo: extras := demo
$(VENV)/.dev: extras := dev,demo$(if $(filter yes,$(TORCH)),$(comma)torch)
$(VENV)/.bench: extras := bench
$(VENV)/.demo $(VENV)/.dev $(VENV)/.bench: $(pins) $(VENV)/.python-$(version)
	$(install) --editable '.[$(extras)]'
	@touch $@

.venv-proto/.made: proto/requirements.txt
	$(PYTHON) -m venv --clear .venv-proto
	.venv-proto/bin/python -m pip install --disable-pip-version-check --quiet --requirement $<
	@touch $@

$(VENV)/.python-$(version):
	@$(PYTHON) -c '$(fits)' || { echo "Rockbed needs Python 3.10 to 3.13 and $(PYTHON) is $(or $(version),not there):" \
	  "name another one, for example PYTHON=python3.12 make $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

.PHONY: pins
pins: $(VENV)/.dev ## Write requirements-dev.txt anew with the newest releases (torch stays)
	$(BIN)/pip install --quiet uv
	{ sed -n '/^#/p' requirements-dev.txt; echo 'torch==2.13.0' | $(BIN)/uv pip compile --quiet --universal \
	  --python-version 3.10 --no-annotate --no-header --no-emit-index-url \
	  --extra dev --extra demo --extra bench --extra torch pyproject.toml - \
	  | grep -vE '^(cuda|nvidia|triton)'; } > requirements-dev.new
	mv requirements-dev.new requirements-dev.txt

# --- clean-up ---

.PHONY: clean-cache
clean-cache: ## Drop every compiled kernel
	find rockbed client server storage optimizers tests benchmarks examples -name '*.nb[ci]' -delete

.PHONY: clean
clean: clean-cache ## Drop everything that was made here, the virtual environment too
	rm -rf $(VENV) .venv-proto .venv-torch .venv-damo .venv-damo-torch .venv-fbgemm build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
