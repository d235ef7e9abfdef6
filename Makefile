PYTHON ?= python3
# Two workers left two cores idle for a third of the time. Three took up to 20 GB of memory.
WORKERS ?= $(shell $(PYTHON) -c 'import os; \
	print(3 if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") > 22e9 else 2)')
UV := .tools/bin/uv
RUN := .venv/bin

NO_JVM := not spark and not kafka and not long
UNIT := -m "$(NO_JVM)"
QUICK := -m "$(NO_JVM) and not slow"
# A file's tests share fixtures, so one worker runs them all.
PARALLEL := --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

export UV_PYTHON_DOWNLOADS := never
# Otherwise each test worker and each driver compiles the sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup programs demo test test-unit test-all test-lowest test-spark41 coverage lint bench docs site clean

help:
	@echo "make demo        run the whole job on this machine, on real images; with KEEP=1 its page"
	@echo "                 stays open until Ctrl-C"
	@echo "make test        lint, type check and test, in about 12 minutes on two cores"
	@echo "make test-unit   only the quick tests that need no JVM, in about two minutes"
	@echo "make test-all    all tests, with the long ones: kills, outages, a soak"
	@echo "make test-lowest the unit tests with the lowest declared versions"
	@echo "make test-spark41 the tests of streams, batches, tables and faults on Spark 4.1"
	@echo "make coverage    what make test runs, and the lines that it reaches"
	@echo "make lint        lint, type check and build the documentation"
	@echo "make bench       run the benchmarks in short, in less than 15 minutes on two cores"
	@echo "make docs        write the pages that are made from the code: configuration, metrics, logging"
	@echo "make site        build the documentation as a site, in .site"
	@echo "make clean       remove the demo's data"

setup: .venv/.complete

$(UV):
	@$(PYTHON) scripts/check_machine.py
	@$(PYTHON) -m venv .tools
	@.tools/bin/pip install --quiet --disable-pip-version-check uv==0.13.8

.venv/.complete: $(UV) pyproject.toml uv.lock
	@echo "installing (about 7 GB, once)"
	@$(UV) sync --frozen --quiet --compile-bytecode --python $(PYTHON) --group site
	@touch .venv/.demo $@

# A part of the development environment; --inexact removes nothing from a whole one.
# torch needs triton, which is large, only to compile models for GPUs.
.venv/.demo: $(UV) pyproject.toml uv.lock
	@echo "installing (about 6 GB, once)"
	@$(UV) sync --frozen --quiet --compile-bytecode --python $(PYTHON) \
		--inexact --no-dev --extra demo --no-install-package triton
	@touch $@

demo: .venv/.demo
	@$(PYTHON) scripts/check_machine.py
	@$(RUN)/python examples/demo.py $(if $(KEEP),--keep)

lint: setup
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/deptry core streaming
	$(RUN)/mkdocs build --strict --quiet
	$(RUN)/python scripts/audit.py

# A browser, promtool and Azurite, for tests of the page, of the alerts and of references.
programs: $(UV)
	@$(PYTHON) scripts/install_programs.py

# The tests start Spark dozens of times, each time with a third less work.
.tools/class-archive: .venv/.complete
	@$(RUN)/embedstream jars --class-archive > /dev/null
	@touch $@

# What the tests need is installed while the checks run.
test: setup
	@$(PYTHON) scripts/check_machine.py
	@$(MAKE) --no-print-directory --jobs=3 lint programs .tools/class-archive
	$(RUN)/pytest $(PARALLEL)

test-unit: setup
	$(RUN)/pytest $(PARALLEL) $(QUICK)

# One after another: some of the long tests measure memory and time.
test-all: lint programs .tools/class-archive
	@$(PYTHON) scripts/check_machine.py
	$(RUN)/pytest -m "" --hypothesis-profile=all --log-cli-level=INFO

# Print the path of the interpreter of a version: from the PATH, where pyenv's shims run only the
# versions that PYENV_VERSION names, or one that uv finds.
FIND_PYTHON = PYENV_VERSION=$(1) python$(1) -c 'import sys; print(sys.executable)' 2> /dev/null \
	|| $(UV) python find --quiet $(1) 2> /dev/null

# The lowest declared versions, then the locked ones with each newer Python that the machine has.
test-lowest: $(UV)
	$(UV) venv --quiet --clear --python $(PYTHON) .tools/lowest
	$(UV) pip install --quiet --no-config --resolution lowest-direct --python .tools/lowest \
		--requirement pyproject.toml --all-extras --group dev --editable .
	.tools/lowest/bin/python -m pytest $(PARALLEL) $(UNIT)
	@set -e; for version in 3.12 3.13; do \
		if ! python=$$($(call FIND_PYTHON,$$version)); then \
			echo "Python $$version is not on this machine: left out"; continue; \
		fi; \
		UV_PROJECT_ENVIRONMENT=.tools/python-$$version \
			$(UV) sync --frozen --quiet --python "$$python"; \
		echo "Python $$version"; \
		.tools/python-$$version/bin/python -m pytest $(PARALLEL) $(UNIT); \
	done

# The locked environment, with Spark 4.1 in the place of the locked one.
.tools/spark41/.complete: $(UV) pyproject.toml uv.lock
	@echo "installing (about 7 GB, once)"
	@UV_PROJECT_ENVIRONMENT=.tools/spark41 \
		$(UV) sync --frozen --quiet --compile-bytecode --python $(PYTHON)
	@$(UV) pip install --quiet --no-config --python .tools/spark41 "pyspark[connect]==4.1.3"
	@.tools/spark41/bin/embedstream jars --class-archive > /dev/null
	@touch $@

# PySpark 4.1 leaves the sockets of collected rows to the garbage collector.
test-spark41: .tools/spark41/.complete
	.tools/spark41/bin/python -m pytest $(PARALLEL) -W ignore:unclosed:ResourceWarning \
		tests/streaming/stream tests/streaming/bulk tests/streaming/table tests/streaming/worker \
		tests/faults tests/streaming/spark/test_jars.py tests/streaming/spark/test_session.py \
		tests/streaming/api/test_sql.py tests/streaming/api/test_dataframe.py

coverage: setup
	$(RUN)/coverage erase
	$(RUN)/coverage run -m pytest $(PARALLEL)
	$(RUN)/coverage combine --quiet
	$(RUN)/coverage report

bench: setup
	@$(PYTHON) scripts/check_machine.py
	$(RUN)/python benchmarks/decode.py
	$(RUN)/python benchmarks/overhead.py --images 300 --turns 1
	$(RUN)/python benchmarks/scale.py --rows 60
	$(RUN)/python benchmarks/references.py --images 100 --turns 1 --encoders efficientnet_lite0
	$(RUN)/python benchmarks/dedupe.py --images 100 --turns 1
	$(RUN)/python benchmarks/latency.py --seconds 10 --backlog 200
	$(RUN)/python benchmarks/start.py --no-warm-up --quiet-s 65
	$(RUN)/python benchmarks/throughput.py --items 32 --turns 1 --only dataframe row_udf
	$(RUN)/python benchmarks/throughput.py --modality text --items 64 --turns 1 \
		--only featurize pandas_udf
	$(RUN)/python benchmarks/throughput.py --modality audio --items 8 --turns 1 --only featurize
	$(RUN)/python benchmarks/several_encoders.py --images 32 --turns 1
	$(RUN)/python benchmarks/swap.py --swaps 1
	$(RUN)/python benchmarks/index.py --rows 60000 --commits 10
	$(RUN)/python benchmarks/monitor.py --images 64 --turns 1
	@if $(RUN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(RUN)/python benchmarks/gpu.py; else echo "no GPU: benchmarks/gpu.py is left out"; fi

site: setup
	$(RUN)/mkdocs build --strict

docs: setup
	$(RUN)/python -m embedstream.config.reference > docs/configuration.md
	$(RUN)/python -m embedstream.monitor.reference > docs/metrics.md
	$(RUN)/python -m embedstream.logs.reference > docs/logging.md

clean:
	rm -rf demo-data
