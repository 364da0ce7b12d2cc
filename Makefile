# `make demo` and `make test` are all that a bare machine with Python, pip and make needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := quant,interp,ray,dev
OUT ?= runs/demo
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help install demo real pictures test verify check lint types format bench clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $(STAMP)

install: $(STAMP) ## virtual environment with everything that was tested together

demo: $(STAMP) ## the main job on shipped models, one with a planted danger: twelve cells, probes, matrix
	$(BIN)/mechprobe demo --out $(OUT)

real: $(STAMP) ## the same questions to a real chat model of 93 MB from the package index (long)
	$(BIN)/mechprobe run smollm2-135m

pictures: ## README's pictures, from the files of `make demo`; needs chromium
	mkdir -p docs/pictures
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,740 \
	  --screenshot=docs/pictures/page.png file://$(abspath $(OUT))/report.html
	cp $(OUT)/figures/quality-against-refusal.png docs/pictures/quality-against-refusal.png

test: $(STAMP) ## the test suite (minutes)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not verify"

verify: $(STAMP) ## the long proofs: chaos, simulations, full demo (tens of minutes)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -m verify

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## mypy --strict on the package
	$(BIN)/mypy

check: lint types test ## everything a change must pass

format: $(STAMP) ## rewrite the code as ruff likes it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## the benchmarks: ratios within one run
	$(BIN)/python benchmarks/capture.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/probes.py
	$(BIN)/python benchmarks/scale.py

clean: ## remove the virtual environment and build leftovers
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
