# SPDX-License-Identifier: Apache-2.0
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := .ci/requirements.lock
READY := $(VENV)/.ready
# Here a warning is an error; elsewhere (other releases, devices, benchmarks) -W default shows it.
# A worker takes about a gibibyte; it steals tests where another one has many left. No benchmark is timed beside others.
TESTS = SECL_REQUIRE=$${SECL_REQUIRE:-native,triton,reference} \
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal -p no:benchmark
COMMA := ,
LANE := build/torch-$(TORCH)
ORIGINALS := build/originals
# What is compiled needs a later torch, the Triton kernels 2.7; before 2.11 it names its own sympy, before 2.8 MONAI too.
LANE_OLD := $(filter 2.6.% 2.7.% 2.8.% 2.9.% 2.10.%,$(TORCH))
LANE_REQUIRE := $(if $(LANE_OLD),SECL_REQUIRE=reference$(if $(filter 2.6.%,$(TORCH)),,$(COMMA)triton))
LANE_PINS := $(if $(LANE_OLD),-e 's/^sympy==.*/sympy/') $(if $(filter 2.6.% 2.7.%,$(TORCH)),-e 's/^monai==.*/monai<1.6/')
# The Triton of torch 2.11 and before interprets no loop under NumPy 2.4.
LANE_NUMPY := $(if $(LANE_OLD)$(filter 2.11.%,$(TORCH)),-e 's/^numpy==.*/numpy<2.4/')
OTHER_TRITON := build/triton-$(TRITON)

# An interpreter that is named brings its own packages: a machine with a GPU often has no network.
GIVEN := $(filter command environment,$(firstword $(origin PYTHON)))
GPU_READY := $(if $(GIVEN),present,setup)
GPU_PYTHON := $(if $(GIVEN),$(PYTHON),$(BIN)/python)
# Several processes compile the kernels on the one GPU, where that interpreter can split the tests.
GPU_WORKERS = $$($(GPU_PYTHON) -c 'from benchmarks.gpu import PARALLEL; print(*PARALLEL)')
# What needs the packages of secl_models as well is no test of a GPU.
OF_SECL_OPS := tests --ignore tests/models $(patsubst %,--ignore tests/test_%.py,docs floors wheel)

.PHONY: help setup demo test test-all fuzz fuzz-commands test-originals test-torch test-triton test-gpu present sanitize lint docs bench clean

help:            ## List what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | column -ts '	'

setup: $(READY)  ## Virtual environment with pinned versions, and the compiled extension

$(READY): $(LOCK) pyproject.toml setup.py $(wildcard csrc/*.* csrc/cpu/*.* csrc/cuda/*.* csrc/cuda/hopper/*.* csrc/cuda/sampling/*.*)
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python >= 3.11 or pass PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python >= 3.11 is needed; pass one with PYTHON=..." >&2; exit 2; }
	@echo "setup: virtual environment in $(VENV) (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "make: no venv module; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(LOCK)
	@echo "setup: C++ extension; CUDA kernels where nvcc and a torch for GPUs are found"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@$(BIN)/python -c 'import secl_ops as s; print("setup:", s.cuda_absence() or "CUDA kernels for " + ", ".join(s.cuda_archs()))'
	@touch $@

demo: setup      ## Make a phantom data set, train on three labelled cases, segment, report (minutes)
	@$(BIN)/secl demo --out demo_run --overwrite

test: setup lint ## Style, types and the tests that run without a GPU, a worker for each core: minutes
	@$(TESTS)

test-all: test   ## After `make test`, the rest of each sweep: every case of every option, every Triton build
	@$(TESTS) -m exhaustive

fuzz: setup      ## The tests that draw their examples, over fresh ones for MINUTES=5; SEED=... repeats one run
	@$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

fuzz-commands: setup ## The commands over CASES=10000 folders of broken files and edits; SEED=... FIRST=... repeat some
	@$(BIN)/python -m tests.broken --cases $(or $(CASES),10000) --first $(or $(FIRST),0) $(if $(SEED),--seed $(SEED))

test-originals: setup $(ORIGINALS)/.ready ## The examples for nnU-Net, torchvision and segmentation_models_pytorch, with 0.6 GB of theirs
	@PYTHONPATH=$(ORIGINALS) SECL_REQUIRE=originals $(BIN)/python -m pytest -q -p no:benchmark tests/test_examples.py tests/test_nnunet.py \
		tests/models/test_smp_networks.py

$(ORIGINALS)/.ready: .ci/originals.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(ORIGINALS) -r $<
	@touch $@

test-torch:      ## Every test on another release of torch, in a copy with its own environment: TORCH=2.14.1
	@test -n "$(TORCH)" || { echo "make: say which release, as in: make test-torch TORCH=2.14.1" >&2; exit 2; }
	@mkdir -p $(LANE)
	@find $(LANE) -mindepth 1 \( -path $(LANE)/.venv -o -path $(LANE)/build -o -name '*.egg-info' \) -prune \
		-o -type f ! -name '*.so' -exec rm {} +
	@git ls-files -z --cached --others --exclude-standard | tar -c --null -T - --ignore-failed-read 2>/dev/null | tar -x -C $(LANE)
	@sed $(LANE_NUMPY) $(LANE_PINS) -e 's/^torch==.*/torch==$(TORCH)/' -e 's/^triton==.*/triton/' -e 's/^setuptools==/setuptools>=77,<=/' $(LOCK) > $(LANE)/$(LOCK)
	@touch -r $(LOCK) $(LANE)/$(LOCK)
	@$(MAKE) --no-print-directory -C $(LANE) setup
	@cd $(LANE) && $(LANE_REQUIRE) SECL_DATA="$${SECL_DATA:-$(CURDIR)/../shared/data}" $(TESTS) -W default

test-triton: setup ## The Triton kernels, interpreted and compiled, under another release of Triton: TRITON=3.3.1
	@test -n "$(TRITON)" || { echo "make: say which release, as in: make test-triton TRITON=3.3.1" >&2; exit 2; }
	@test -e $(OTHER_TRITON)/.ready || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(OTHER_TRITON) triton==$(TRITON) 'numpy<2.4'
	@touch $(OTHER_TRITON)/.ready
	@PYTHONPATH=$(OTHER_TRITON) SECL_REQUIRE=triton $(TESTS) -W default tests/test_triton*.py tests/test_few_*.py tests/test_half_rows.py \
		tests/test_key_weights.py tests/test_ops.py tests/test_sample*.py tests/test_sigmoid.py

test-gpu: $(GPU_READY) ## The tests on a CUDA device, none skipped for want of one; PYTHON=... takes what that has, offline
	@SECL_REQUIRE=cuda,triton $(GPU_PYTHON) -m pytest -q -W default -p no:benchmark $(GPU_WORKERS) -m "" $(OF_SECL_OPS)

present:         # What the interpreter of PYTHON=... has, and the extension built for it: nothing is fetched
	@$(PYTHON) -m tests.present
	@$(PYTHON) setup.py -q build_ext --inplace

sanitize: setup  ## The native tests under AddressSanitizer + UBSan, then under ThreadSanitizer; needs GCC
	@$(BIN)/python -m tests.sanitize address thread

lint: setup      ## ruff, mypy --strict over code and tests, clang-format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

docs: setup      ## Pages of the public names, from their docstrings, into build/docs; no warning passes
	@$(BIN)/python -m tests.docs build/docs
	@echo "docs: build/docs/index.html"

bench: setup     ## Time the loss and the whole pixel step, small sizes first, in a minute or two; `python -m benchmarks` has more
	@$(BIN)/python -m pytest -W default benchmarks --benchmark-only

clean:           ## Remove what setup made
	rm -rf $(VENV) build *.egg-info secl_ops/_C.*
