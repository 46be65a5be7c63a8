# Needs python3 (3.11 or newer), git and make. Everything is installed into .venv; every target does its own set-up.
.PHONY: setup demo test test-slow check bench report serve
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# What is installed beside the library; the container image takes less.
EXTRAS ?= dev
# The CPU build of torch is a tenth of the CUDA build; it is asked for where no NVIDIA driver answers.
TORCH_INDEX ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --extra-index-url https://download.pytorch.org/whl/cpu)

help:
	@echo "make demo    generate weights for scikit-learn's digits, score them, draw out/demo/accuracy.png"
	@echo "make test    the tests: seconds each, on CPU, offline"
	@echo "make check   style, types, import contracts, and a pass of the tests with tensor shapes checked"
	@echo "make bench   speed, as ratios measured side by side"
	@echo "make serve   weights over HTTP, on this machine only (docs/service.md)"
	@echo "make report  copy the figures of docs/results/*.json into README.md, the settings into docs/operations.md"
	@echo "make setup   only install, into .venv"

# The modules whose signatures carry shapes, and their tests.
comma := ,
empty :=
ANNOTATED = $(shell grep -rlE '^(from|import) jaxtyping' --include='*.py' weightgen model_zoo | LC_ALL=C sort)
SHAPE_MODULES = $(subst $(empty) ,$(comma),$(patsubst %.__init__,%,$(subst /,.,$(ANNOTATED:%.py=%))))
SHAPE_TESTS = $(foreach file,$(ANNOTATED),tests/$(dir $(file))test_$(notdir $(file)))

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "weightgen needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "[setup] creating .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv \
	  || { rm -rf .venv; echo "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "[setup] installing torch (a few hundred megabytes the first time)"
	@$(BIN)/python -m pip install -qq --no-deps -c constraints.txt --retries 1 $(TORCH_INDEX) torch \
	  || $(BIN)/python -m pip install -qq --no-deps -c constraints.txt torch
	@echo "[setup] installing weightgen and its tools, at the versions of constraints.txt"
	@$(BIN)/python -m pip install -qq -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
	@echo "[setup] done"

demo: $(READY)
	@echo "[demo] weights for scikit-learn's digits, a data set the generator has never seen"
	@$(BIN)/python -m model_zoo.demo --out out/demo

test: $(READY)
	@echo "[test] the tests that take seconds each, on CPU, offline (make test-slow runs the others)"
	@HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m "not slow and not gpu"

test-slow: $(READY)
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m "slow or gpu"

check: $(READY)
	@echo "[check] ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "[check] pyright"
	@$(BIN)/pyright
	@echo "[check] import contracts"
	@$(BIN)/lint-imports
	@echo "[check] tensor shapes against their annotations"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m "not slow and not gpu and not wrong_types" \
	  --jaxtyping-packages=$(SHAPE_MODULES),beartype.beartype $(SHAPE_TESTS)

bench: $(READY)
	@echo "[bench] ratios, each measured side by side in one run"
	@$(BIN)/python -m benchmarks

report: $(READY)
	@$(BIN)/python -m benchmarks.reports.report
	@$(BIN)/python -m service.settings_table

serve: $(READY)
	@echo "[serve] http://$${WEIGHTGEN_HOST:-127.0.0.1}:$${WEIGHTGEN_PORT:-8000}/docs"
	@$(BIN)/python -m service
