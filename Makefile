# make run: from nothing to a released assistant.  make test: set up and test.
# Also: status, stop, demo, backup TO=FOLDER, restore FROM=FOLDER, test-clients, chaos, lint, bench.
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
CLIENTS := .clients

.PHONY: run setup status stop demo backup restore test test-clients chaos lint bench

run: setup
	@$(BIN)/python -m flows.stack run

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Perennial needs Python 3.11, and '$(PYTHON)' is not here: install it, or name it with make run PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Perennial needs Python 3.11; $(PYTHON) is $$($(PYTHON) --version)"; exit 1; }
	@test $$(df -Pk . | awk 'NR==2 {print $$4}') -gt 6000000 || { echo "6 GB of free disk are needed here for the environment and the models: free some space"; exit 1; }
	@echo "installing into $(VENV) (about 3 GB, a few minutes)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)" || { echo "pip could not install $(TORCH): is there a network? Run make again to go on"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock || { echo "pip could not install requirements.lock: is there a network? Run make again to go on"; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

status: setup
	@$(BIN)/python -m flows.stack status

stop: setup
	@$(BIN)/python -m flows.stack stop

demo: setup
	@$(BIN)/python -m flows.demo

backup: setup
	@$(BIN)/python -m flows.stack backup "$(TO)"

restore: setup
	@$(BIN)/python -m flows.stack restore "$(FROM)"

test: setup
	@$(BIN)/python -m pytest tests -m "not stack" -n 2 --dist loadfile
	@$(BIN)/python -m pytest tests -m stack

# Every client in an environment of its own: together pip tries versions of them for a long time
test-clients: setup
	@for client in openai langchain-openai "litellm mcp"; do \
	  folder=$(CLIENTS)/$${client%% *}; test -x $$folder/bin/pip || $(PYTHON) -m venv $$folder; \
	  $$folder/bin/pip install --quiet --disable-pip-version-check --upgrade $$client || exit 1; done
	@mkdir -p $(CLIENTS)/node && npm install --silent --no-fund --prefix $(CLIENTS)/node openai
	@$(BIN)/python -m pytest tests/clients/real_clients.py

chaos: setup
	@PERENNIAL_CHAOS=20 $(BIN)/python -m pytest tests/test_faults.py tests/test_training.py -n 2

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: setup
	@$(BIN)/python -m benchmarks
