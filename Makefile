# Everything that is needed is installed into $(VENV), made by $(PYTHON); some
# targets have an environment of their own in .venvs.
#
#   make test        the whole test suite
#   make demo        the crawler of examples/
#   make bench       the benchmarks, as one table
#   make bench-features   nested runs, task trees, thread hops
#   make bench-load  an HTTP service whose middle layer is synchronous
#   make bench-check a few rungs: has greenback become slower than $(BENCH_RESULTS) says?
#   make bench-results    all of them but the check, into $(BENCH_RESULTS); plots and tables
#   make bench-plots tables and plots of the documentation from $(BENCH_RESULTS)
#   make lint        formatters, linters and type checkers
#   make format      reformat Python and C
#   make coverage    the suite with C coverage, at least $(COVERAGE_MINIMUM) %
#   make sanitize    the suite under AddressSanitizer and UBSan
#   make suites      the tests of asyncio, Trio, AnyIO and uvloop, with a portal in every task
#   make hosts       packages from PyPI that use greenback, at work
#   make torture     random programs, natively and with portals: two minutes
#   make soak        the same for an hour, on every Python the direct engine knows
#   make docs        the documentation, in build/docs
#   make package     build sdist and wheel, and try both in empty environments
#   make package-all the same with wheels for every supported Python
#   make news        the changelog's next entry; with VERSION= it is written into CHANGELOG.md
#   make test-all    the whole matrix: every Python, debug builds, both engines; hours
#   make clean       remove environments and what was built
#
# PYTEST_ARGS, DEMO_ARGS, BENCH_ARGS, SUITES_ARGS, HOSTS_ARGS and TORTURE_ARGS are passed on.

PYTHON ?= python3
VENV ?= .venv
TEST_GROUPS ?= test typing
COVERAGE_MINIMUM ?= 90
SOAK_SECONDS ?= 3600
# Of one Python, with which others are compared.
BENCH_RESULTS ?= benchmarks/results/cpython-3.13-x86_64.json
BENCH_PYTHON ?= $(shell tools/find-python 3.13)
BENCH_MAKE = $(MAKE) PYTHON=$(BENCH_PYTHON) VENV=.venvs/bench
C_FILES = $(wildcard csrc/*.c csrc/*.h csrc/engine/*.c csrc/engine/*.h)

.PHONY: test demo bench bench-features bench-load bench-check bench-results bench-plots lint \
	lint-python lint-types lint-c format coverage sanitize suites hosts torture soak docs package \
	package-all news test-all clean

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

bench-load:
	tools/test-env $(VENV) $(PYTHON) bench bench-load
	$(VENV)/bin/python benchmarks/load.py $(BENCH_ARGS)

bench-check:
	tools/test-env .venvs/bench $(BENCH_PYTHON) bench
	.venvs/bench/bin/python benchmarks/check.py $(BENCH_RESULTS) $(BENCH_ARGS)

bench-results:
	$(BENCH_MAKE) bench BENCH_ARGS="--json $(BENCH_RESULTS) --engines direct,greenlet $(BENCH_ARGS)"
	$(BENCH_MAKE) bench-load BENCH_ARGS="--json $(BENCH_RESULTS)"
	$(BENCH_MAKE) bench-features BENCH_ARGS="--json $(BENCH_RESULTS)"
	$(MAKE) bench-plots

bench-plots:
	tools/test-env .venvs/bench $(BENCH_PYTHON) bench bench-plots
	.venvs/bench/bin/python benchmarks/tables.py $(BENCH_RESULTS)
	.venvs/bench/bin/python benchmarks/plots.py $(BENCH_RESULTS)

lint: lint-python lint-types lint-c

lint-python:
	tools/test-env $(VENV) $(PYTHON) lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

lint-types:
	tools/test-env $(VENV) $(PYTHON) lint test
	$(VENV)/bin/mypy src
	$(VENV)/bin/stubtest --allowlist tools/stubtest-allowlist greenback

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

hosts:
	tools/test-env $(VENV) $(PYTHON) build
	$(VENV)/bin/python tests/hosts/run.py $(HOSTS_ARGS)

torture:
	tools/test-env $(VENV) $(PYTHON) torture
	$(VENV)/bin/python tests/torture/torture.py --greenlets $(TORTURE_ARGS)

soak:
	tools/soak $(SOAK_SECONDS)

docs:
	tools/test-env .venvs/docs $(PYTHON) docs
	.venvs/docs/bin/sphinx-build -E -W -n --keep-going docs build/docs

package:
	tools/check-package .venvs/package $(PYTHON)

package-all:
	tools/check-package .venvs/package $(foreach version,3.13 3.11 3.12 3.14 3.15,$(shell tools/find-python $(version)))

news:
	tools/test-env $(VENV) $(PYTHON) news
	$(VENV)/bin/towncrier build $(if $(VERSION),--version $(VERSION),--draft --version next)

test-all:
	tools/test-all

clean:
	rm -rf .venv .venvs build dist src/*.egg-info .hypothesis .mypy_cache \
		.pytest_cache .ruff_cache
	find benchmarks examples src tests tools -name __pycache__ -exec rm -rf {} +
