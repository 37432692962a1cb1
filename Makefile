# make demo   train a small Keras model on 3,000 photographs through the ring
# make test   lint, types and tests
# make stress the faults of make test in large numbers, and a long random mix of them; an hour
# make breaks what protects against each fault, undone one at a time in a copy: whether a test notices; half an hour
# make bench  how close the ring comes to what this machine can do
# Each sets up all it needs in .venv. PYTHON chooses the interpreter: make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test stress breaks bench
.DELETE_ON_ERROR:

demo: .venv/installed data/photos/photos.csv
	$(BIN)/ringload demo --frame data/photos/photos.csv

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses 2 --dist loadfile

stress: .venv/installed
	$(BIN)/pytest --stress -m fault --timeout 900 --numprocesses 2 --dist loadfile --no-loadscope-reorder --report=RELIABILITY.md

breaks: .venv/installed
	$(BIN)/python -m tests.breaks

bench: .venv/installed data/photos/photos.csv
	$(BIN)/python bench/roofline.py

data/photos/photos.csv: .venv/installed bench/photos.py
	$(BIN)/python bench/photos.py --out data/photos

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[tf,torch,jax,parquet,bench,examples,test]'
	touch $@
