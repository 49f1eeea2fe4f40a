# Everything that is needed is installed into $(VENV), made by $(PYTHON); some
# targets have an environment of their own in .venvs.
#
#   make test        the whole test suite
#   make demo        the crawler of examples/
#   make bench       the benchmarks, as one table
#   make bench-features   nested runs, task trees, thread hops
#   make lint        formatters, linters and type checkers
#   make format      reformat Python and C
#   make coverage    the suite with C coverage, at least $(COVERAGE_MINIMUM) %
#   make sanitize    the suite under AddressSanitizer and UBSan
#   make suites      the tests of asyncio, Trio, AnyIO and uvloop, with a portal in every task
#   make torture     random programs, natively and with portals: two minutes
#   make soak        the same for an hour, on every Python the direct engine knows
#   make package     build sdist and wheel, and try both in empty environments
#   make test-all    all of the above but benchmarks and soak, on every supported Python, with debug builds: three hours
#   make clean       remove environments and what was built
#
# PYTEST_ARGS, DEMO_ARGS, BENCH_ARGS and TORTURE_ARGS are passed on.

PYTHON ?= python3
VENV ?= .venv
COVERAGE_MINIMUM ?= 90
TEST_GROUPS ?= test typing
SOAK_SECONDS ?= 3600
C_FILES = $(wildcard csrc/*.c csrc/*.h csrc/engine/*.c csrc/engine/*.h)

.PHONY: test demo bench bench-features lint lint-python lint-types lint-c format coverage \
	sanitize suites torture soak package test-all clean

test:
	tools/test-env $(VENV) $(PYTHON) $(TEST_GROUPS)
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

demo:
	tools/test-env $(VENV) $(PYTHON) demo
	$(VENV)/bin/python -m greenback examples/crawler.py $(DEMO_ARGS)

bench:
	tools/test-env $(VENV) $(PYTHON) bench
	$(VENV)/bin/python benchmarks/run.py $(BENCH_ARGS)

bench-features:
	tools/test-env $(VENV) $(PYTHON) bench-features
	$(VENV)/bin/python benchmarks/nested_run.py $(BENCH_ARGS)
	$(VENV)/bin/python benchmarks/task_creation.py $(BENCH_ARGS)
	$(VENV)/bin/python benchmarks/thread_hop.py $(BENCH_ARGS)

lint: lint-python lint-types lint-c

lint-python:
	tools/test-env $(VENV) $(PYTHON) lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

lint-types:
	tools/test-env $(VENV) $(PYTHON) lint test
	$(VENV)/bin/mypy src
	$(VENV)/bin/stubtest greenback

lint-c:
	tools/test-env $(VENV) $(PYTHON) lint
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)

format:
	tools/test-env $(VENV) $(PYTHON) lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(C_FILES)

coverage:
	tools/coverage .venvs/coverage $(PYTHON) $(COVERAGE_MINIMUM) $(PYTEST_ARGS)

sanitize:
	tools/sanitize .venvs/sanitize $(PYTHON) $(PYTEST_ARGS)

suites:
	tools/test-env $(VENV) $(PYTHON) suites
	$(VENV)/bin/python tests/suites/run.py $(SUITES_ARGS)

torture:
	tools/test-env $(VENV) $(PYTHON) torture
	$(VENV)/bin/python tests/torture/torture.py --greenlets $(TORTURE_ARGS)

soak:
	tools/soak $(SOAK_SECONDS)

package:
	tools/check-package .venvs/package $(PYTHON)

test-all:
	tools/test-all

clean:
	rm -rf .venv .venvs build dist src/*.egg-info .hypothesis .mypy_cache \
		.pytest_cache .ruff_cache
	find benchmarks examples src tests tools -name __pycache__ -exec rm -rf {} +
