# Each target sets up all that it needs on a machine with Python 3.11 or later, make and git.
# Set PYTHON to choose an interpreter; it is used once, to make .venv.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
INSTALLED := $(VENV)/.installed
SYSTEM := $(VENV)/.system-packages
TPM := $(VENV)/.tpm
WORKERS ?= 2
PYTEST_ARGS ?=

# The first interpreter that runs and is new enough: a version manager's shim may exist and not work.
PYTHON ?= $(shell for p in python3.11 python3 python3.13 python3.12 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

# What the simulator's guests, its firmware tests, the TPM and a benchmark use, each with a program or file that shows it is there.
PACKAGES := bubblewrap:/usr/bin/bwrap fuse3:/usr/bin/fusermount3 ovmf:/usr/share/OVMF nats-server:/usr/sbin/nats-server \
	swtpm:/usr/bin/swtpm libtss2-dev:/usr/include/tss2 gcc:/usr/bin/gcc pkg-config:/usr/bin/pkg-config \
	python3-dev:/usr/bin/python3-config

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(INSTALLED) $(SYSTEM) $(TPM)  ## make .venv with everything in it

.PHONY: demo
demo: setup  ## the whole story in a minute, on a simulated machine
	@$(BIN)/cloister demo

.PHONY: test
test: setup  ## every test
	@$(PY) -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

.PHONY: quick
quick: setup  ## the tests that take no more than a few seconds each
	@$(PY) -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(PYTEST_ARGS)

.PHONY: coverage
coverage: setup  ## every test, with the lines and branches that none of them reaches
	@$(PY) -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term $(PYTEST_ARGS)

.PHONY: bench
bench: setup  ## measure the numbers we answer for; writes build/bench.json
	@$(PY) -m benchmarks

.PHONY: lint
lint: $(INSTALLED)  ## ruff and mypy --strict
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: format
format: $(INSTALLED)  ## let ruff put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: docs
docs: $(INSTALLED)  ## write docs/errors.md again from the code
	@$(PY) -m docs.generate

.PHONY: proto
proto: $(INSTALLED)  ## write the protobuf stubs again
	@$(PY) -m grpc_tools.protoc -I. --python_out=. --pyi_out=. broker/wire/*.proto

# An existing file is what uv prefers, so nothing moves unless UPGRADE=1 says so.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header $(if $(UPGRADE),--upgrade)

.PHONY: lock
lock: $(INSTALLED)  ## write requirements/*.txt again; UPGRADE=1 takes newer versions
	@$(LOCK) pyproject.toml --extra dev --output-file requirements/dev.txt
	@$(LOCK) pyproject.toml --constraints requirements/dev.txt --output-file requirements/base.txt
	@$(LOCK) pyproject.toml --constraints requirements/dev.txt --extra all --output-file requirements/all.txt
	@$(LOCK) pyproject.toml --constraints requirements/dev.txt --extra tpm --output-file requirements/tpm.txt

.PHONY: clean
clean:  ## remove .venv and all that was built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(PY):
	@if [ -z "$(PYTHON)" ]; then echo "Cloister needs Python 3.11 or later; none was found. Set PYTHON=/path/to/python."; exit 1; fi
	@if ! $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq >/dev/null && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null; \
		else echo "This Python has no ensurepip: install the package python3-venv."; exit 1; fi; fi
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) (once)"
	@$(PYTHON) -m venv $(VENV)

# The lock has hashes for every file; the project itself comes from this folder.
$(INSTALLED): requirements/dev.txt pyproject.toml | $(PY)
	@echo "Installing the locked requirements (once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r requirements/dev.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Best effort: a part whose package is missing is skipped by its tests, which name the package.
$(SYSTEM): Makefile | $(PY)
	@missing=""; for entry in $(PACKAGES); do [ -e "$${entry#*:}" ] || missing="$$missing $${entry%%:*}"; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing system packages:$$missing (once)"; \
		apt-get update -qq >/dev/null 2>&1 </dev/null || true; \
		for name in $$missing; do \
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$$name" >/dev/null 2>&1 </dev/null \
				|| echo "Could not be installed, so what needs it is skipped: $$name"; \
		done; \
	elif [ -n "$$missing" ]; then echo "Not installed, so what needs them is skipped:$$missing"; fi
	@touch $@

# The bindings to the TPM come as source alone. Best effort, too: without them a root key cannot be kept in a TPM.
$(TPM): requirements/tpm.txt | $(INSTALLED) $(SYSTEM)
	@if ! pkg-config --exists tss2-esys 2>/dev/null; then echo "Not installed, so the TPM is left out: libtss2-dev"; \
	else echo "Building the TPM bindings (once)"; \
		$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/tpm.txt \
			>$(VENV)/tpm.log 2>&1 </dev/null || echo "Could not be built, so the TPM is left out: tpm2-pytss ($(VENV)/tpm.log)"; fi
	@touch $@
