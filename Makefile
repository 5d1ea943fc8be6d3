# The commands of this project; `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
# Test processes. Each keeps PyTorch to one thread, so two fill two cores without getting in each other's way.
WORKERS ?= 2
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test stress transformers-tests format lint check docs bench bench-gpu dashboard clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv and install the locked versions (skipped when nothing changed)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: PYTHON: $$($(PYTHON) --version); Python 3.11 or newer (make PYTHON=python3.11)" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

demo: install ## Train a Mixture-of-Modules on text, then compare three models on a task that needs routing
	@echo "1 of 2: a Mixture-of-Modules learns text, the standard library of this Python"
	$(BIN)/python run.py $(ARGS)
	@echo
	@echo "2 of 2: functions applied in turn; markers in the context tell which function applies, the token never does."
	@echo "        Three models learn it: Mixture-of-Modules, plain transformer, and modules chosen once for each token id"
	OMP_NUM_THREADS=1 $(BIN)/python run.py -m experiment=control/demo

test: install ## Run the whole test suite (ARGS="-k router" for a part)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

transformers-tests: install ## Run transformers' own model tests on our models (ARGS="-k llama" for a part)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.transformers_suite -n $(WORKERS) $(ARGS)

stress: install ## Kill runs at random moments, resume, and compare with undisturbed runs (ARGS="--blows 100")
	$(BIN)/python -m tests.stress $(ARGS)

format: install ## Format the code, fix what the linter can fix, and strip notebooks' outputs
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/nbstripout notebooks/*.ipynb

lint: install ## Lint, check types and spelling
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell

check: lint ## Lint, and check that code and notebooks are formatted
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb

docs: install ## Build the documentation into site/, warnings being errors (ARGS=-v for more)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

bench: install ## Measure speed, in twenty minutes, and write the table of docs/performance.md (ARGS=--resume)
	$(BIN)/python -m benchmarks.bench $(ARGS)

bench-gpu: install ## Measure a GPU, in ten minutes, and write the table of docs/performance.md
	$(BIN)/python -m benchmarks.gpu $(ARGS)

dashboard: install ## Make a workspace at Weights & Biases (ARGS="task.project=mom"); offline, its file
	$(BIN)/python run.py task=dashboard $(ARGS)

clean: ## Remove caches and builds; runs and .venv stay
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
