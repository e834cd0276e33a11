# `make help` lists what there is. Everything is installed into .venv; all state lies below mlruns/.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
LABEL_STUDIO := .venv/label-studio
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
.DEFAULT_GOAL := help

.PHONY: help install label-studio demo serve test test-slow test-all lint ui clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	@echo "Installing the pinned dependencies (several minutes, about 6 GB with PyTorch) …"
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -r requirements.txt
	@touch $(INSTALLED)

install: $(INSTALLED) ## create .venv and install the pinned dependencies

$(LABEL_STUDIO)/.installed: requirements-label-studio.txt
	$(PYTHON) -m venv $(LABEL_STUDIO)
	$(LABEL_STUDIO)/bin/python -m pip install --disable-pip-version-check --progress-bar off -q -r requirements-label-studio.txt
	@touch $@

label-studio: $(LABEL_STUDIO)/.installed ## install Label Studio's SDK apart (500 MB), by which tests check what it is given

demo: $(INSTALLED) ## the main job in rehearsal: stand-in teacher, drawn images, no key, no cost
	$(BIN)/python -m src.train +experiment=demo

serve: $(INSTALLED) ## the cascade over HTTP, on the newest run's student (or the demo's), with sample traffic
	@test -e mlruns/mlflow.db || $(MAKE) demo
	$(BIN)/python -m src.serve run=latest sample_traffic=2 cascade.threshold=0.9 cascade.teacher_confidence=0.95 $(KEYS)

test: $(INSTALLED) ## the everyday tests: no network, key, GPU or other data needed
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not slow and not shared"

test-slow: $(INSTALLED) ## the other tests: of whole commands, of real servers, and on real data
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "slow or shared"

test-all: lint test test-slow ## every test, lint and types

lint: $(INSTALLED) ## style and types
	$(BIN)/python -m ruff check src tests
	$(BIN)/python -m mypy

ui: $(INSTALLED) ## open the MLflow UI on this folder's runs
	@echo 'Choose "Model training" at the top left, or follow the link below the experiment'"'"'s name.'
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db

clean: ## remove caches and .venv; mlruns/, with what was paid for, is never touched
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './mlruns/*' -prune -exec rm -rf {} +
