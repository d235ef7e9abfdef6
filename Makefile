PYTHON ?= python3
UV := .tools/bin/uv
RUN := .venv/bin

export UV_PYTHON_DOWNLOADS := never

.PHONY: help setup demo test lint docs clean

help:
	@echo "make demo   run the whole job on this machine, on real pictures"
	@echo "make test   lint, type check and test"
	@echo "make lint   lint and type check only"
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

docs: setup
	$(RUN)/python -m embedstream.config_reference > docs/configuration.md

clean:
	rm -rf demo-data
