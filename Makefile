# make demo   makes the environment and runs the whole job on the embedded base model
# make test   makes the environment and runs linters, type checks and every test
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# The newest torchaudio refuses a torch built for another CUDA version, so the trio is pinned here, not in the package.
TORCH := "torch==2.11.*" "torchvision==0.26.*" "torchaudio==2.11.*"

.PHONY: demo test clean

demo: $(READY)
	$(BIN)/anomalydiffusion demo --out demo-output

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[headless,eval,test]"
	touch $@

clean:
	rm -rf .venv demo-output
