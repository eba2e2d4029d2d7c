# `make report` and `make test` do all their own set-up: a virtual environment in .venv, from hashed locks, nothing global.
PYTHON ?= python3.11
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes
SNAKEMAKE = .venv/bin/snakemake
ARGS ?=
# Tests that take the whole machine: real servers, real quantizers, a container engine.
WHOLE = tests/test_default.py tests/test_methods.py tests/runtime/test_docker.py

.PHONY: report test lint chromium docker clean

report: .venv/pipeline.installed
	$(SNAKEMAKE) --cores 1 $(ARGS)

test: .venv/dev.installed chromium $(if $(CI),docker) lint
	.venv/bin/pytest -n 2 --dist loadfile $(if $(CI),-m "not online" $(WHOLE:%=--ignore=%)) $(ARGS)
	$(if $(CI),.venv/bin/pytest -m "not online" $(WHOLE) $(ARGS))

lint: .venv/dev.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/snakefmt --check Snakefile rules
	.venv/bin/mypy

.venv/bin/python:
	@$(PYTHON) -c 'import sys, venv, ensurepip; assert sys.version_info[:2] == (3, 11)' || { echo >&2 \
	  'make: $(PYTHON) is not a Python 3.11 with venv and pip. Remedy: apt install python3.11 python3-venv, or name another: make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv .venv

.venv/pipeline.installed: envs/pipeline.txt | .venv/bin/python
	$(PIP) --requirement $<
	touch $@

.venv/dev.installed: envs/dev.txt .venv/pipeline.installed
	$(PIP) --requirement $<
	touch $@

# The report is tested in a real browser: an installed one, or Debian's where this user may install it.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
	  || echo >&2 'make: no chromium, and no right to install one: the browser tests are skipped. Remedy: apt install chromium'

# Containers are tested with a real engine, which the tests start themselves: Debian's, where this user may install it.
docker:
	@{ command -v dockerd && command -v iptables; } >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends docker.io iptables; } \
	  || echo >&2 'make: no Docker engine, and no right to install one: THE CONTAINER TESTS ARE SKIPPED. Remedy: apt install docker.io iptables'

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .snakemake results
