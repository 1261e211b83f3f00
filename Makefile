# Each target sets up what it needs first. `make` alone lists them.
PYTHON ?= python3
SWEEP  ?= initializers
TORCH  ?=
ARGS   ?=
BIN    := .venv/bin
READY  := .venv/ready

.PHONY: help setup sweep studies ui results report test test-slow check bench audit up down backup restore lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 17

setup: ## .venv with all dependencies; for a GPU: make setup TORCH=auto (see tools/setup.py)
	@$(PYTHON) tools/setup.py --torch=$(TORCH)

$(READY): requirements.txt pyproject.toml tools/setup.py
	@$(PYTHON) tools/setup.py --torch=$(TORCH)

sweep: $(READY) ## run or resume a study: make sweep [SWEEP=initializers] [ARGS="epochs=5"]
	@$(BIN)/fanin sweep $(SWEEP) $(ARGS)

studies: $(READY) ## small versions of all studies and their verdicts: make studies [ARGS="--list"]
	@$(BIN)/python tools/studies.py $(ARGS)

ui: $(READY) ## the MLflow pages of all studies, on this machine only
	@$(BIN)/fanin ui $(ARGS)

results: $(READY) ## the leaderboard of a study: make results [SWEEP=initializers]
	@$(BIN)/fanin results $(SWEEP) $(ARGS)

report: $(READY) ## the HTML report of a study: make report [SWEEP=initializers]
	@$(BIN)/fanin report $(SWEEP) $(ARGS)

test: $(READY) ## all tests but the long ones
	@$(BIN)/pytest -n auto --dist loadfile -m "not slow" $(ARGS)

test-slow: $(READY) ## the long proofs
	@$(BIN)/pytest -m slow --durations=10 $(ARGS)

check: $(READY) ## format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(READY) ## the promised speeds, each as a ratio measured in one run
	@for script in benchmarks/bench_*.py; do $(BIN)/python $$script $(ARGS) || exit 1; done

audit: $(READY) ## known vulnerabilities of the pinned packages: SECURITY.md
	@$(BIN)/uv tool run pip-audit@2.10.1 --strict --disable-pip --no-deps --requirement=requirements.txt \
		--requirement=deploy/constraints.txt $(ARGS)

up: ## a team's server in Docker: make up [PROFILE=s3,workers,ray,dashboard]; docs/server.md
	@$(PYTHON) tools/stack.py up --profile="$(PROFILE)"

down: ## stop the server; its data stay
	@$(PYTHON) tools/stack.py down

backup: ## the server's databases and artifacts to backups/
	@$(PYTHON) tools/stack.py backup

restore: ## the server as it was: make restore FROM=backups/...
	@$(PYTHON) tools/stack.py restore $(if $(FROM),--from="$(FROM)")

lock: $(READY) ## make requirements.txt again from pyproject.toml: make lock [ARGS=--upgrade]
	@$(BIN)/python tools/lock.py $(ARGS)

clean: ## remove .venv and caches; results (mlflow.db, mlartifacts, .fanin) stay
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
