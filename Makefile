# What a reader needs: `make book`, `make test`.  Everything is set up in .venv by the first of them.
PYTHON ?= python3
BIN := .venv/bin
PORT ?= 8000
# One thread per process, one process per core: two threads that wait for each other by spinning are slower than one.
export OMP_NUM_THREADS ?= 1
# Large arrays come from memory that a process keeps: fresh pages from the system cost more than the sums that fill them.
export GLIBC_TUNABLES ?= glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=1073741824
WORKERS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count())")

.PHONY: help setup book pdf zip test test-browser mutants bench lint format serve lab lock audit clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: .venv/installed  ## the virtual environment, with the pinned packages

# LOCKED=1 installs what requirements.lock names, each file checked against its hash (Linux on x86-64, Python 3.11).  PyTorch is
# left out of it: its CPU and CUDA builds carry one version number and different hashes.
.venv/installed: requirements.txt requirements-run.txt constraints.txt requirements.lock pyproject.toml _ext/ipython_kernel_config.py
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
ifdef LOCKED
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt torch -e .
	$(BIN)/python -m pip check
else
	$(BIN)/python -m pip install --quiet -r requirements.txt
endif
	mkdir -p .venv/etc/ipython && cp _ext/ipython_kernel_config.py .venv/etc/ipython
	touch $@

book: .venv/installed  ## execute every chapter and build the pages, strictly
	$(BIN)/jupyter-book build . -W -n --keep-going
	@echo "The book is at file://$(CURDIR)/_build/html/index.html"

TAKE := _build/html/downloads/kernel-balanced-equation

pdf: .venv/installed  ## the whole book as one PDF (needs chromium or google-chrome)
	$(BIN)/jupyter-book build . --builder singlehtml
	$(BIN)/python _ext/print_book.py _build/singlehtml $(TAKE).pdf

zip: book  ## the pages as one zip, to be read with no network
	$(BIN)/python _ext/pack_pages.py _build/html $(TAKE).zip

BROWSER_TESTS := tests/test_browser.py tests/test_laboratory.py

test: .venv/installed  ## unit tests, then every chapter as a notebook
	$(BIN)/python -m pytest -n $(WORKERS) $(BROWSER_TESTS:%=--ignore=%) tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --nbmake --nbmake-timeout=900 book

test-browser: .venv/installed  ## the built pages in chromium: network cut, formulas, sliders, accessibility, laboratory
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(BROWSER_TESTS)

mutants: .venv/installed  ## mistakes planted in the modules: do tests and chapters notice?  An hour on two cores
	$(BIN)/python -m pip install --quiet mutmut==3.8.1
	HYPOTHESIS_PROFILE=quick $(BIN)/mutmut run
	$(BIN)/python tests/mutants.py
	PYTHONPATH=. $(BIN)/python tests/test_bad_input.py
	$(BIN)/python tests/semantic_mutants.py

bench: .venv/installed  ## measure the engine against the loop; rewrites benchmarks/results.json
	PYTHONPATH=. $(BIN)/python benchmarks/bench_engine.py

lint: .venv/installed  ## style of modules, tests and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed  ## bring style and pairs in order, starting from the chapters' Markdown
	for chapter in book/*.ipynb; do touch $${chapter%.ipynb}.md; done
	$(BIN)/jupytext --quiet --sync book/*.ipynb
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
	touch book/*.ipynb && $(BIN)/jupytext --quiet --sync book/*.ipynb

serve: book  ## the built pages at http://localhost:8000
	$(BIN)/python -m http.server --directory _build/html $(PORT)

lab: .venv/installed  ## the chapters in JupyterLab
	$(BIN)/jupyter lab book

TOOLS := .venv/tools/bin
LICENSES := MIT;BSD;Apache;ISC;MPL;Mozilla Public;Python Software Foundation;PSF;Public Domain;CC0;Zlib

$(TOOLS)/uv: .venv/installed
	$(PYTHON) -m venv .venv/tools
	$(TOOLS)/python -m pip install --quiet uv pip-audit pip-licenses

lock: $(TOOLS)/uv  ## write requirements.lock anew from requirements.txt and constraints.txt
	$(TOOLS)/uv pip compile requirements.txt --quiet --no-header --no-annotate --generate-hashes --python-version 3.11.0 \
		--python-platform x86_64-unknown-linux-gnu $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS)) \
		--no-emit-package torch --no-emit-package kernel-balanced-equation -o requirements.lock

audit: $(TOOLS)/uv  ## licences of what is installed; known vulnerabilities of the locked set (asks a public database)
	$(TOOLS)/pip-licenses --python=$(BIN)/python --partial-match --allow-only="$(LICENSES)" --summary
	$(TOOLS)/pip-audit --no-deps --disable-pip --requirement requirements.lock

clean:  ## remove what was built; the virtual environment stays
	rm -rf _build mutants .pytest_cache .ruff_cache .hypothesis .benchmarks *.egg-info __pycache__ */__pycache__
