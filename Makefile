# Each target works alone on a machine with Python, make, gcc and git.
PYTHON ?= $(shell python3.11 --version >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet -c requirements/constraints.txt
CSRC := $(wildcard evonorm_plugins/kernels/csrc/*)
# Extra arguments, as in: make test ARGS="tests/layers -k sync"
ARGS ?=

PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# What `make check` runs, two minutes on two cores with the lint: the files that find most mistakes in
# the least time. A file that takes more than 40 seconds of one core is for `make test`.
CHECK_TESTS ?= tests/test_*.py $(addsuffix .py,$(addprefix tests/,\
	biggan/test_config biggan/test_data biggan/test_models \
	classification/test_config classification/test_data cli/test_bad_input cli/test_command coco/test_train \
	conversion/test_bad_input conversion/test_carry conversion/test_flow conversion/test_rewrite \
	data/test_arrays data/test_cache data/test_decode data/test_loader data/test_sources \
	fold/test_bad_input fold/test_forward graph/test_formula graph/test_graph graph/test_known \
	graph/test_parse graph/test_primitives integrations/detectron2/test_checkpoint \
	integrations/detectron2/test_norms integrations/detectron2/test_solver \
	integrations/timm/test_fusion integrations/torchvision/test_config kernels/test_accuracy kernels/test_ops \
	layers/test_autograd layers/test_bad_input layers/test_baselines layers/test_batch \
	layers/test_conditional layers/test_contract layers/test_sample layers/test_transforms \
	metrics/test_ap metrics/test_data metrics/test_scores metrics/test_statistics_file \
	search/test_store training/test_cluster))

.PHONY: help demo demo-nuclei test test-torch check gpu bench lint docs dist install venv detectron2 clean

help:
	@echo "make demo        train a small detector and a small GAN with EvoNormS0, show what they do"
	@echo "make demo-nuclei DATA=DIR"
	@echo "                 train a Mask R-CNN with EvoNormS0 on nuclei, half an hour at most"
	@echo "make test        run the tests, a process for each core; ARGS=... goes to pytest"
	@echo "make check       lint and the quick tests, before a commit: two minutes on two cores"
	@echo "make test-torch TORCH=2.11.0"
	@echo "                 tests of layers and kernels with another torch, in .venv-torch-2.11.0"
	@echo "make gpu         check and time kernels, layers and models on a CUDA GPU, in eight minutes"
	@echo "make bench       time and memory of layers and of whole models, against BN and GN"
	@echo "make lint        ruff, lint and format, the order of imports, and types"
	@echo "make dist        source distribution and wheel in dist/, tried in a fresh environment;"
	@echo "                 ARGS=--share saves that environment's download of PyTorch"
	@echo "make docs        the documentation as a site, in site/index.html"
	@echo "make install     $(VENV) with everything, Detectron2 if it can be had"
	@echo "make detectron2  try again to get Detectron2"
	@echo "make clean       remove $(VENV) and what builds leave behind"
	@echo "PYTHON=...             the Python to use (3.10 to 3.13)"
	@echo "DETECTRON2_WHEELS=...  folder with a wheel of Detectron2 (~/.cache/evonorm/wheels)"

demo: install
	$(BIN)/python tools/demo.py $(ARGS)

demo-nuclei: install
	@test -n "$(DATA)" || { echo "error: which data? As in: make demo-nuclei DATA=nuclei; the folder holds"; \
		echo "train/, val/, instances_train.json and instances_val.json, in COCO's format"; exit 2; }
	$(BIN)/python tools/demo.py --nuclei "$(DATA)" $(ARGS)

test: install
	$(PYTEST) --durations=30 $(ARGS)

check: lint
	$(PYTEST) $(CHECK_TESTS) $(ARGS)

# Layers and kernels with another torch and the Triton that it brings. Where that has no wheel for
# $(PYTHON), another one can be given.
test-torch:
	@test -n "$(TORCH)" || { echo "error: which torch? As in: make test-torch TORCH=2.11.0"; exit 2; }
	@$(MAKE) --no-print-directory .venv-torch-$(TORCH)/.installed
	PYTHONPATH="$(CURDIR)" .venv-torch-$(TORCH)/bin/python -m pytest -q -n auto --maxprocesses 8 \
		--dist loadfile --no-loadscope-reorder tests/kernels tests/layers $(ARGS)

# numpy: interpreters of Triton up to 3.6 take arrays of one element for numbers, as numpy did before
# 2.4. The library of C kernels is one for all of torch, and stays where it is.
.venv-torch-%/.installed: requirements/constraints.txt $(CSRC)
	$(PYTHON) -m venv $(@D)
	sed '/^torch==/d; /^torchvision==/d; /^numpy==/d' $< > $(@D)/constraints.txt
	@echo "Installing torch $* into $(@D): several gigabytes, this takes a few minutes"
	$(@D)/bin/python -m pip install --quiet -c $(@D)/constraints.txt torch==$* "numpy<2.4" \
		pytest pytest-xdist timm torchvision onnx onnxruntime onnxscript setuptools wheel
	$(@D)/bin/python setup.py --quiet build_ext --inplace
	@touch $@

# Where PYTHON has torch and Triton nothing is installed; C kernels are not needed.
HAS_TRITON = $(PYTHON) -c "from importlib.util import find_spec as f; exit(not (f('torch') and f('triton')))"
gpu:
	@$(HAS_TRITON) || $(MAKE) --no-print-directory $(VENV)/.installed
	PYTHONPATH="$(CURDIR)" $$($(HAS_TRITON) && echo "$(PYTHON)" || echo $(BIN)/python) tools/gpu_check.py $(ARGS)

bench: install
	$(BIN)/python tools/benchmark.py layers
	$(BIN)/python tools/benchmark.py models

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

dist: $(VENV)/.release
	$(BIN)/python tools/dist.py $(ARGS)

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

venv: $(VENV)/.created

# Not a stamp: whether Detectron2 can be had may change between two runs.
install: $(VENV)/.installed
	@$(BIN)/python tools/install_detectron2.py

detectron2: $(VENV)/.installed
	@rm -f $(VENV)/detectron2-failed.txt
	@$(BIN)/python tools/install_detectron2.py

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# setuptools, wheel and ninja come first: Detectron2 is built with those of the environment, since
# a build environment of its own would hold no torch. The project itself is built the same way.
$(VENV)/.installed: $(VENV)/.created setup.py pyproject.toml requirements/constraints.txt $(CSRC)
	@echo "Installing into $(VENV): PyTorch is several gigabytes, this takes a few minutes"
	$(PIP_INSTALL) setuptools wheel ninja
	$(PIP_INSTALL) --no-build-isolation --editable ".[dev]"
	@rm -f $(VENV)/detectron2-failed.txt
	@touch $@

$(VENV)/.release: $(VENV)/.installed
	$(PIP_INSTALL) --no-build-isolation --editable ".[release]"
	@touch $@

clean:
	rm -rf $(VENV) .venv-torch-* build dist site *.egg-info evonorm_plugins/kernels/*.so .*_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
