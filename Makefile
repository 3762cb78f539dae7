# Everything here sets itself up in .venv, from nothing but Python 3.11 or newer, and with the versions that were
# tested (constraints.txt). Set-up is repeated only when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
BIN := .venv/bin
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
READY := .venv/ready-$(KEY)
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-without test-long lint docs bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

demo: $(READY)-run ## a real teacher into a measured student, and a page about it, in minutes on two cores
	@start=$$(date +%s) && $(BIN)/potstill run recipes/demo.yaml && end=$$(date +%s) && \
	printf 'make demo: %d min %02d s, set-up aside\n' $$(((end - start) / 60)) $$(((end - start) % 60))

test: $(READY)-dev ## the tests, all but the long campaigns
	$(BIN)/python -m pytest -n 2 -m "not long and not peers"

# All that tests/optional.py looks for, and the tests that could need it.
OPTIONAL := bwrap unshare chromium chromium-browser google-chrome g++ clang++
MAY_NEED := tests/verify tests/report tests/studio tests/test_artifacts.py tests/test_repository.py tests/generate/test_reasoning_arms.py \
  tests/generate/test_reasoning_files.py tests/generate/test_resume.py tests/objectives/sweep/test_tile.py

test-without: $(READY)-dev ## the tests that need optional programs, as on a machine that has none of them: they skip
	.ci/without $(OPTIONAL) -- $(BIN)/python -m pytest -n 2 -m "not long and not peers" $(MAY_NEED)

test-long: $(READY)-dev $(READY)-peers ## all tests: also many kill points, large grids and other people's kernels
	$(BIN)/python -m pytest

lint: $(READY)-dev ## ruff, mypy (strict) and the layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)-dev ## the documentation, into site/; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY)-peers ## side by side with other people's kernels, trainers and clients; one JSON object each, at the end
	$(BIN)/python -m benchmarks.kd_loss --json
	$(BIN)/python -m benchmarks.train_step --json
	$(BIN)/python -m benchmarks.generate --json
	$(BIN)/python -m benchmarks.promptness --json
	$(BIN)/python -m benchmarks.busy --json
	$(BIN)/python -m benchmarks.studio --json
	$(BIN)/python -m benchmarks.labs --json

clean: ## remove .venv and what the tools left; runs/ stays
	rm -rf .venv site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# ---- set-up --------------------------------------------------------------------------------------------------

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || \
	{ echo "potstill needs Python 3.11 or newer, and there is no $(PYTHON): install it, or say make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "potstill needs Python 3.11 or newer, and this is $$($(PYTHON) --version): say make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "$(PYTHON) has no venv module: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up .venv; the first time takes some minutes, for torch"
	@$(PYTHON) -m venv .venv

# What builds comes first, and builds are not isolated, so that they too have the pinned versions: hatchling for potstill,
# setuptools and wheel for dependencies of reasoning-gym that come as source (cellpylib, zss).
$(READY)-run: | .venv/bin/python
	@rm -f .venv/ready-*
	@$(PIP) hatchling setuptools wheel
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(READY)-dev: $(READY)-run
	@$(PIP) --no-build-isolation --editable ".[generate,math,verify,reasoning,vision,studio,embeddings,gguf,onnx,openvino,sign,words,lm-eval,docs,dev]"
	@touch $@

$(READY)-peers: $(READY)-run
	@$(PIP) --no-build-isolation --editable ".[peers]"
	@# Their own requirements (torchvision, tensorboard) are not needed for what is compared.
	@# Licence texts: read out of the wheel, which is not installed (it needs forty packages).
	@$(BIN)/python -m pip download --quiet --no-deps --dest .venv scancode-toolkit-mini==32.5.0
	@$(PIP) --no-deps torchdistill==1.1.5 textbrewer==0.2.1.post1
	@touch $@
