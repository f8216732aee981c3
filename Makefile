# Every target works from a fresh clone: it makes .venv and fetches what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.peers

.PHONY: help run install test check fmt bench flood fuzz compare sim crowd clean lock coverage-table gateway-comparison gateway-clients gateway-fuzz
help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

install: $(STAMP)  ## .venv with homing and its development extras
$(STAMP): pyproject.toml constraints.txt tools/venv.sh
	PYTHON=$(PYTHON) sh tools/venv.sh $(VENV)
	touch $@

$(PEERS): tools/peers.sh | $(STAMP)
	sh tools/peers.sh
	touch $@

run: $(STAMP)  ## the whole loop on this machine, in a live table
	$(BIN)/homing lab

check: $(STAMP)  ## style, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: check $(PEERS)  ## check, then the whole suite, foreign programs included
	$(BIN)/python -m pytest

bench: $(STAMP)  ## benchmarks (never part of the tests)
	sh tools/bench_peers.sh
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m bench $(ROWS) --out docs/performance

fuzz: $(STAMP)  ## fuzz decoding, the pipeline, streams: RUNS=1000000 SECONDS_EACH=0 TARGETS="decode pipeline streams"
	RUNS="$(RUNS)" SECONDS_EACH="$(SECONDS_EACH)" TARGETS="$(TARGETS)" CORPUS="$(CORPUS)" sh tools/fuzz.sh $(VENV)

SEEDS ?= 200
HOSTS ?= 2000
DAYS ?= 3
JOBS ?= 1
FIRST ?= 1
sim: $(STAMP)  ## many seeds of the large simulation: SEEDS=200 HOSTS=2000 DAYS=3 JOBS=1 FIRST=1
	$(BIN)/python -m tests.sim.fleet --seeds $(SEEDS) --hosts $(HOSTS) --days $(DAYS) --jobs $(JOBS) --first $(FIRST)

crowd: $(STAMP)  ## 100,000 subscriptions over a kill and a restart, with figures
	$(BIN)/python -m bench.crowd

compare: $(PEERS)  ## the same 500 updates to homing, BIND and Knot DNS: docs/update-comparison.md
	$(BIN)/python -m tools.update_comparison

flood: $(STAMP)  ## ten minutes of mixed flood on loopback; FLOOD="--seconds 20" for less
	$(BIN)/python -m bench.flood $(FLOOD)

gateway-comparison: $(PEERS)  ## write docs/gateway-comparison.md beside miniupnpd (root)
	$(BIN)/python -m tools.gateway_comparison

gateway-clients: $(PEERS)  ## other people's programs map ports through the gateway (root)
	sh tools/gateway_clients.sh
	$(BIN)/python -m tools.gateway_clients > docs/gateway-clients.md

gateway-fuzz: $(PEERS)  ## 100,000 broken datagrams and calls to the gateway (root)
	HOMING_FUZZ=100000 $(BIN)/python -m pytest tests/system/test_gateway_fuzz.py

fmt: $(STAMP)  ## format and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

coverage-table: $(STAMP)  ## write docs/rfc-coverage.md from the tests' markers
	$(BIN)/python -m tools.rfc_coverage

lock:  ## resolve the newest versions into constraints.txt
	PYTHON=$(PYTHON) sh tools/lock.sh

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
