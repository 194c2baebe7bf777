# For a newcomer: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
# A GPU here is measured first. `make demo GPU=` leaves it alone. Without one, the main job needs no torch.
GPU := $(shell nvidia-smi -L 2>/dev/null)
DEMO_DATA := $(if $(GPU),$(DEMO)/measured.parquet,data/gemm/h200.parquet)
comma := ,
# Kept from training, to score on.
HELD_OUT := exaone,falcon,gemma-2,gemma-3,glm-4,phi
DEMO_INSTALL := '.[train$(if $(GPU),$(comma)gpu)]' nvidia-matmul-heuristics
# In the environment, because pip hands -c to none of the processes that build packages.
INSTALL := PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check --quiet

# Installing builds it, where there is a C++ compiler.
NATIVE := $(wildcard aks/runtime/native/aks.h aks/runtime/native/CMakeLists.txt aks/runtime/native/src/*)

.PHONY: help demo measure test check format clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: .venv/.installed-demo ## Install; train on measurements, distil, export, evaluate, report
	$(if $(GPU),$(MAKE) measure)
	$(BIN)/aks train --data $(DEMO_DATA) --out $(DEMO) --held-out $(HELD_OUT)
	$(BIN)/aks export $(DEMO)/selector.json --out $(DEMO)/model
	$(BIN)/aks evaluate --data $(DEMO_DATA) --model $(DEMO)/model --selector $(DEMO)/selector.json \
	    --bench --report $(DEMO)/report.html
	@echo "Report: $(DEMO)/report.html. Training runs: $(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db"

# Two minutes of this GPU, beside what came with aks for its kind (if anything).
measure: .venv/.installed-demo
	$(BIN)/aks collect --minutes 2 --num-problems 600 --configs-from models/gemm/h200 --out $(DEMO)/measured.db
	name=$$($(BIN)/python -c 'import aks; print(aks.current_device().name)') && $(BIN)/aks data merge \
	    $(DEMO)/measured.db $$(ls data/gemm/$$name.parquet 2>/dev/null) --out $(DEMO_DATA)

test: check ## Install, then check

check: .venv/.installed-dev ## What CI checks: lint, format, types, imports, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -n auto -q

format: .venv/.installed-dev ## Format, and fix what ruff can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean: ## Remove the environment, caches and demo output
	rm -rf .venv $(DEMO) .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "aks needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

.venv/.installed-dev: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $@ .venv/.installed-demo

.venv/.installed-demo: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(INSTALL) -e $(DEMO_INSTALL)
	@touch $@
