# make demo             a translation model, trained and translating, in a few minutes
# make test             what a change has to pass
# make test-slow        the tests that take longer
# make check-reference REFERENCE=dir   pyseq beside what fairseq computed
# make benchmark          speed of everything that can be measured here (hours); benchmark-ops, benchmark-runs: its halves
# PIP_ARGS is handed to every pip install (an index with CPU-only wheels of torch, say).

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
RUN := $(BIN)/python
CORE_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h') CMakeLists.txt setup.py pyproject.toml

.PHONY: demo test test-slow lint types imports core sanitize cuda pytest check-reference benchmark benchmark-ops benchmark-runs clean

demo: $(VENV)/.demo
	$(RUN) examples/number_words/demo.py --bin $(BIN)

test: lint types imports core sanitize cuda pytest

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "pyseq needs Python >= 3.10; this is `$(PYTHON) -V`. Give another with PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "could not make a virtual environment: on Debian or Ubuntu, apt-get install python3-venv python3-dev"; exit 1; }
	@$(RUN) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || { echo "Python.h is missing: on Debian or Ubuntu, apt-get install python3-dev"; exit 1; }
	@command -v c++ >/dev/null || { echo "no C++ compiler: on Debian or Ubuntu, apt-get install g++"; exit 1; }
	$(BIN)/pip install -q --upgrade pip $(PIP_ARGS)
	@touch $@

$(VENV)/.torch: constraints.txt | $(VENV)/.made
	$(BIN)/pip install -q -c constraints.txt torch $(PIP_ARGS)
	@touch $@

$(VENV)/.demo: $(CORE_SOURCES) | $(VENV)/.torch
	$(BIN)/pip install -q -c constraints.txt '.[demo]' $(PIP_ARGS)
	@touch $@

$(VENV)/.test: $(CORE_SOURCES) | $(VENV)/.torch
	$(BIN)/pip install -q -c constraints.txt -e '.[test]' $(PIP_ARGS)
	@touch $@

lint: $(VENV)/.test
	$(BIN)/ruff check .

types: $(VENV)/.test
	$(BIN)/mypy

imports: $(VENV)/.test
	$(BIN)/lint-imports

# The C++ core with warnings as errors, and its own tests without Python.
core: $(VENV)/.test
	$(BIN)/cmake -S . -B build/core -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPYSEQ_TESTS=ON -DPython_EXECUTABLE=$(abspath $(RUN))
	$(BIN)/cmake --build build/core
	$(BIN)/ctest --test-dir build/core --output-on-failure

sanitize: $(VENV)/.test
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DPYSEQ_TESTS=ON -DPYSEQ_PYTHON=OFF -DPYSEQ_SANITIZE=address,undefined
	$(BIN)/cmake --build build/sanitize
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure

# The CUDA sources and the Triton kernels, compiled for sm_80, sm_90 and sm_100: warnings are errors, nothing spills.
cuda: $(VENV)/.test
	@command -v nvcc >/dev/null || echo "NOT RUN: no nvcc here, the CUDA sources were not compiled"
	$(RUN) -m pytest -q -rs tests/cuda

pytest: $(VENV)/.test
	@$(RUN) -c 'import torch; print("" if torch.cuda.is_available() else "NOT RUN: no CUDA device here, the tests marked gpu are skipped")'
	$(RUN) -m pytest -q -m "not slow" --ignore=tests/cuda --durations=10

test-slow: $(VENV)/.test
	$(RUN) -m pytest -q -m slow --durations=10

check-reference: $(VENV)/.test
	$(RUN) -m benchmarks.check_reference "$(REFERENCE)" $(if $(FAIRSEQ),--fairseq "$(FAIRSEQ)")

# The operations' figures, and the tables of the documents that are made from them. The runs that are written down have the
# numbers 1, 2, 3. More turns than by default: on a shared host a ratio differs by a tenth from turn to turn.
NUMBER ?= 1
benchmark-ops: $(VENV)/.test
	$(RUN) -m benchmarks.ops --device cpu --turns 40 --seconds 75 --check --json benchmarks/results/ops_cpu-$(NUMBER).json; status=$$?; \
	$(RUN) -m benchmarks report --write README.md docs/kernels.md && exit $$status

# What a user runs: training, translating, preprocessing, start-up, data, checkpoints. Hours on two cores. REFERENCE and DATA
# name the folders that docs/performance.md tells of, FAIRSEQ an interpreter; what lacks one of them is told and left out.
BENCH_OPTIONS := $(if $(REFERENCE),--reference "$(REFERENCE)") $(if $(DATA),--data "$(DATA)") $(if $(FAIRSEQ),--fairseq "$(FAIRSEQ)")
benchmark-runs: $(VENV)/.test
	$(RUN) -m benchmarks run train/ switches/ generate/ preprocess/ startup/ checkpoint/ data/ growth/ --device cpu --check \
		$(BENCH_OPTIONS) --json benchmarks/results/runs_cpu-$(NUMBER).json; status=$$?; \
	$(RUN) -m benchmarks report --write README.md docs/performance.md && exit $$status

benchmark: $(VENV)/.test
	$(MAKE) benchmark-ops; ops=$$?; $(MAKE) benchmark-runs && exit $$ops

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
