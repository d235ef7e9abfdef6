PYTHON ?= python3
UV := .tools/bin/uv
RUN := .venv/bin

export UV_PYTHON_DOWNLOADS := never

.PHONY: help setup demo test lint bench docs clean

help:
	@echo "make demo   run the whole job on this machine, on real pictures"
	@echo "make test   lint, type check and test"
	@echo "make lint   lint and type check only"
	@echo "make bench  run every benchmark, in about 15 minutes on two cores"
	@echo "make docs   write docs/configuration.md from the configuration's models"
	@echo "make clean  remove the demo's data"

setup: .venv/.complete

$(UV):
	@$(PYTHON) scripts/check_machine.py
	@$(PYTHON) -m venv .tools
	@.tools/bin/pip install --quiet --disable-pip-version-check uv==0.13.8

.venv/.complete: $(UV) pyproject.toml uv.lock
	@echo "installing (about 7 GB, once)"
	@$(UV) sync --frozen --quiet --python $(PYTHON)
	@touch $@

demo: setup
	@$(PYTHON) scripts/check_machine.py
	@$(RUN)/python examples/demo.py

lint: setup
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy
	$(RUN)/lint-imports

test: lint
	@$(PYTHON) scripts/check_machine.py
	$(RUN)/pytest

bench: setup
	@$(PYTHON) scripts/check_machine.py
	$(RUN)/python benchmarks/decode.py
	$(RUN)/python benchmarks/overhead.py
	$(RUN)/python benchmarks/scale.py
	$(RUN)/python benchmarks/references.py
	$(RUN)/python benchmarks/dedupe.py
	$(RUN)/python benchmarks/latency.py
	$(RUN)/python benchmarks/start.py --quiet-s 90
	$(RUN)/python benchmarks/throughput.py --images 32 --rounds 1
	@if $(RUN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(RUN)/python benchmarks/gpu.py; else echo "no GPU: benchmarks/gpu.py is left out"; fi

docs: setup
	$(RUN)/python -m embedstream.config_reference > docs/configuration.md

clean:
	rm -rf demo-data
