# Every command of the project. A fresh clone needs python3.11 and a package index that pip or uv can reach.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3.11
BIN := $(CURDIR)/.venv/bin
INSTALLED := .venv/installed-requirements.txt
STACK_INSTALLED := .venv-stack/installed-requirements.txt
STACK ?= runs/stack
RUNS ?= $(CURDIR)/runs
MLFLOW_PORT ?= 5050
PREFECT_PORT ?= 4300
PROFILE ?= demo
GPUS ?= 1
NAME ?= $(PROFILE)
export PATH := $(BIN):$(PATH)
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS ?= 120
export DO_NOT_TRACK ?= 1
# Trust what this machine trusts: many networks have a certificate authority of their own.
export UV_SYSTEM_CERTS ?= true

# uv reads no pip settings, so the index that pip would use is handed over; a uv setting of yours wins.
FIND_UV = uv=$$(command -v uv || true); \
	if [ -z "$$uv" ]; then python -m ensurepip --default-pip >/dev/null; python -m pip install --quiet uv; uv=$(BIN)/uv; fi; \
	index=$${UV_DEFAULT_INDEX:-$${UV_INDEX_URL:-$${PIP_INDEX_URL:-$$(python -m pip config get global.index-url 2>/dev/null || true)}}}; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$$index"; fi

# Tests in a browser need Debian's chromium, or another one in the variable CHROMIUM; pip cannot bring it.
CHROMIUM ?= $(shell command -v chromium)
UNLESS_CHROMIUM = $(if $(CHROMIUM),, and not browser)

.PHONY: help install demo test hostile lint ui deploy stack stack-stop stack-status lock clean
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

install: $(INSTALLED) ## make or update .venv; nothing to do while requirements.txt is the same

$(INSTALLED): requirements.txt
	if [ ! -x $(BIN)/python ]; then $(PYTHON) -m venv .venv; fi
	$(FIND_UV); \
	  "$$uv" pip install --python $(BIN)/python --no-deps --compile-bytecode -r requirements.txt \
	  || python -m pip install --no-deps -r requirements.txt; \
	  "$$uv" pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	cp requirements.txt $(INSTALLED)

$(STACK_INSTALLED): infra/requirements-stack.txt | $(INSTALLED)
	if [ ! -x .venv-stack/bin/python ]; then $(PYTHON) -m venv .venv-stack; fi
	$(FIND_UV); \
	  "$$uv" pip install --python .venv-stack/bin/python --no-deps --compile-bytecode -r infra/requirements-stack.txt \
	  || .venv-stack/bin/python -m pip install --no-deps -r infra/requirements-stack.txt
	cp infra/requirements-stack.txt $(STACK_INSTALLED)

demo: $(INSTALLED) ## the whole pipeline on the bundled teacher; PROFILE=full for the long one
	python -m flows.compress_model --profile $(PROFILE) --name $(NAME)

test: lint $(STACK_INSTALLED) ## what CI runs: lint, types, imports, and all tests but those that take minutes or a GPU
	@# Tests that start servers mostly wait for them: the others run beside, and tell their results at the end.
	@mkdir -p build; chosen="not gpu and not pipeline and not faults and not hostile$(UNLESS_CHROMIUM)"; \
	  python -m pytest -m "$$chosen" --ignore tests/flows --ignore tests/stack >build/tests.txt 2>&1 & beside=$$!; \
	  trap 'kill $$beside 2>/dev/null || true' EXIT; trap 'exit 130' INT TERM; \
	  python -m pytest -m "$$chosen" tests/flows tests/stack && servers=0 || servers=$$?; \
	  wait $$beside && others=0 || others=$$?; cat build/tests.txt; exit $$((servers || others))

hostile: $(INSTALLED) ## damaged and malicious files and requests: nothing crashes, hangs or passes unseen
	python -m pytest -m hostile tests/hostile

lint: $(INSTALLED) ## style, types, and who may import whom
	ruff check .
	ruff format --check .
	mypy
	lint-imports

ui: $(INSTALLED) ## MLflow and Prefect on this machine's loopback, until Ctrl-C
	@python -m tasks.mlflow_database sqlite:///$(RUNS)/mlflow.db
	@MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1 \
	    --backend-store-uri sqlite:///$(RUNS)/mlflow.db --artifacts-destination $(RUNS)/mlartifacts & mlflow=$$!; \
	  PREFECT_SERVER_API_PORT=$(PREFECT_PORT) prefect server start & prefect=$$!; \
	  trap 'kill $$mlflow $$prefect 2>/dev/null || true; wait' EXIT; trap 'exit 0' INT TERM; \
	  echo "MLflow:  http://127.0.0.1:$(MLFLOW_PORT)/#/experiments/1/runs"; echo "Prefect: http://127.0.0.1:$(PREFECT_PORT)"; \
	  wait

stack: $(STACK_INSTALLED) ## PostgreSQL, S3, MLflow, Prefect and a worker on loopback, until Ctrl-C; state in STACK=runs/stack
	python -m infra.stack up --folder $(STACK)

deploy: $(INSTALLED) ## pools, GPU limit (GPUS=1), automations and deployments on the server of PREFECT_API_URL
	@: "$${PREFECT_API_URL:?set it to the address of your Prefect server, for make stack http://127.0.0.1:4300/api}"
	for pool in cpu gpu; do \
	  prefect work-pool inspect $$pool >/dev/null 2>&1 || prefect --no-prompt work-pool create $$pool --type process; \
	done
	prefect work-pool set-concurrency-limit gpu $(GPUS)
	prefect gcl update gpu --limit $(GPUS) >/dev/null 2>&1 || prefect gcl create gpu --limit $(GPUS)
	python -m tasks.recovery
	prefect --no-prompt deploy --all --prefect-file infra/prefect.yaml

stack-stop: $(INSTALLED) ## stops that stack
	python -m infra.stack down --folder $(STACK)

stack-status: $(INSTALLED) ## a line for each of its services
	python -m infra.stack status --folder $(STACK)

lock: $(INSTALLED) ## exact versions of everything from pyproject.toml; keeps what still fits
	$(FIND_UV); "$$uv" pip compile --quiet --group dev --python-version 3.11 --no-annotate --no-header \
	  --output-file requirements.txt pyproject.toml; \
	  "$$uv" pip compile --quiet --group stack --python-version 3.11 --no-annotate --no-header \
	  --output-file infra/requirements-stack.txt

clean: ## caches and build leftovers; runs/ and .venv/ stay
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
	find src flows tasks tests -name __pycache__ -type d -prune -exec rm -rf {} +
