# `make repro` and `make test` do all the set-up they need; what is up to date is left alone.
.DEFAULT_GOAL := help
.PHONY: help setup repro completions treatments results bench bench-quick test test-unit faults check ui lock

PYTHON ?= python3
# `make setup CPU_ONLY=1` leaves these out, also when it runs again. Torch can't start without its other CUDA libraries.
GPU_PACKAGES = triton nvidia-cusolver nvidia-nvtx cuda-bindings cuda-pathfinder
LEAVE_OUT := $(CPU_ONLY)$(wildcard .venv/left_out)
BIN := $(CURDIR)/.venv/bin
READY := .venv/ready
WITHOUT_VENV = PATH="$(subst $(BIN):,,$(PATH))"
# A test file stays with one worker, which makes what its tests share once. `make test WORKERS=0`: one after another.
WORKERS ?= 2
SIDE_BY_SIDE = --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# DVC starts the stages' `python` from the PATH
export PATH := $(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
unexport PYTHONHOME

# The programs in .venv name its folder. If the project was moved, or its Python is gone, .venv is made anew.
$(shell { test -x .venv/bin/python && test "$$(cat $(READY))" = "$$(pwd -P)"; } 2>/dev/null || rm -f $(READY))

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: $(READY)  ## make .venv and install what requirements.lock names

repro: $(READY)  ## run the pipeline: what changed since the last time, and what depends on it
	@dvc repro
	@cvae report

completions: $(READY)  ## train and measure what completes pictures
	@dvc repro completion/dvc.yaml

treatments: $(READY)  ## measure every likelihood, prior and sampler for docs/lab/treatments.md (OPTIONS=--help)
	@dvc repro --quiet judge
	@python -m benchmarks.treatments $(OPTIONS)
	@python -m benchmarks.treatments_report

results:  ## copy what the pages quote from reports/ into docs/results/
	@cp reports/validation.json reports/metrics.json reports/per_class.csv reports/history.csv reports/judge.json reports/doctor.json \
		reports/figures/samplers.png docs/results/default/
	@cp reports/study/trials.csv reports/study/seeds.csv reports/study/best.json reports/study/figures/*.png docs/results/study/

test: $(READY)  ## run all tests (OPTIONS="-k outbox": some of them)
	@pytest $(SIDE_BY_SIDE) $(OPTIONS)

test-unit: $(READY)  ## run the quick tests: no training on MNIST, no DVC, no server
	@pytest $(SIDE_BY_SIDE) -m "not slow"

faults: $(READY)  ## kill stages 1,000 times, serve badly, fill disks (FAULTS=100: so many kills); docs/trust.md
	@FAULTS=$(or $(FAULTS),1000) pytest tests/faults -rP --numprocesses $(WORKERS) --dist worksteal

check: $(READY)  ## lint, format and types
	@ruff check .
	@ruff format --check .
	@mypy

ui: $(READY)  ## compare runs in the browser
	@cvae ui

bench: $(READY)  ## measure speed against what you would write or pick instead; needs `make repro` once
	$(CONTENDERS)
	@python -m benchmarks.run
	@python -m benchmarks.commands
	@python -m benchmarks.commands --repro
	@python -m benchmarks.growth

bench-quick: $(READY)  ## fewer rounds of fewer images, in less than five minutes
	$(CONTENDERS)
	@python -m benchmarks.run --quick
	@python -m benchmarks.commands --quick

# Lightning and pythae, without what they have in common with requirements.lock, whose versions stay
CONTENDERS = @uv pip install --quiet --require-hashes --no-deps --requirement benchmarks/requirements.txt

lock: $(READY)  ## resolve pyproject.toml's ranges into requirements.lock anew
	@uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --all-extras --python-version 3.11 \
		--upgrade --custom-compile-command "make lock" pyproject.toml --output-file requirements.lock
	@uv pip compile --quiet --universal --no-deps --generate-hashes --no-emit-index-url --no-annotate --python-version 3.11 \
		--upgrade --custom-compile-command "make lock" benchmarks/requirements.in --output-file benchmarks/requirements.txt

# Bytecode is compiled once, here: where PYTHONDONTWRITEBYTECODE is set, as in many containers, each stage and each
# program that a test starts would otherwise compile thousands of modules anew.
$(READY): requirements.lock pyproject.toml
	@$(WITHOUT_VENV) $(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
		sys.exit(0 if (3, 11) <= v < (3, 14) else "error: this is Python %d.%d; 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.12 setup" % v)'
	@test -e $@ || $(WITHOUT_VENV) $(PYTHON) -m venv --clear .venv
	@command -v uv >/dev/null || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(if $(LEAVE_OUT),printf '%s\n' $(GPU_PACKAGES) >.venv/left_out)
	@echo "installing what requirements.lock names into .venv: the first time, some 6 GB (CPU_ONLY=1: 5 GB) and a minute or more"
	@uv pip install --quiet --require-hashes --compile-bytecode --requirement requirements.lock \
		$(if $(LEAVE_OUT),--excludes .venv/left_out)
	@uv pip install --quiet --no-deps --editable .
	@! git rev-parse --git-dir >/dev/null 2>&1 || { git config user.name && git config user.email; } >/dev/null || { \
		git config user.name cvae && git config user.email cvae@localhost && \
		echo 'git knew no name for the commits of experiments; it is cvae here: change it with git config user.name and user.email'; }
	@pwd -P >$@
