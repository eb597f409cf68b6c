# Two commands on a bare clone: `make demo` and `make test`. Each creates what it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(VENV)/peers
FOREIGN := $(VENV)/foreign
COVERAGE := $(VENV)/coverage
BROWSER := $(VENV)/browser
DOCS := $(VENV)/docs

# A process per core, up to four: each imports torch.
IN_PARALLEL := --numprocesses=auto --maxprocesses=4

SECONDS ?= 300
SEED ?= $(shell date +%s)

.PHONY: help demo test slow fuzz peers bench bench-quick foreign browser docs matrix papers-quick coverage check format build clean

help:
	@echo "make demo    train a small network, analyse its checkpoints, draw the figures (two to three minutes)"
	@echo "make test    run the tests (six to seven minutes on two cores)"
	@echo "make slow    run those that take long: what is too much for every day"
	@echo "make fuzz    mutate results files, checkpoints and options for SECONDS=300; what is found is in fuzz-findings/"
	@echo "make peers   compare with other libraries for Hessians, which it installs beside the environment"
	@echo "make bench   time spectra, those libraries and a reference side by side, and write docs/performance.md (about ten minutes)"
	@echo "make bench-quick time spectra and the reference alone; fails if spectra is slower than stated (under five minutes)"
	@echo "make foreign analyse networks and checkpoints of other packages, which it installs beside the environment"
	@echo "make browser look at the report page in the system's Chromium, with a driver that it installs beside the environment"
	@echo "make matrix  compute what docs/architectures.md says of each kind of network, and write it (two minutes)"
	@echo "make papers-quick the papers' experiments in their quick form on the data sets in DATA=data, and docs/papers.md (under 40 minutes)"
	@echo "make docs    build the documentation as a site, in site/ (installs mkdocs beside the environment)"
	@echo "make coverage say which lines no test runs (installs coverage beside the environment)"
	@echo "make check   lint, format and types"
	@echo "make format  rewrite the sources in the project's format"

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with what constraints.txt pins (a minute or more, once) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/spectra demo

test: $(READY)
	$(BIN)/python -m pytest $(IN_PARALLEL)

slow: $(READY)
	$(BIN)/python -m pytest -m slow $(IN_PARALLEL)

fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS) --seed $(SEED)

# Into a folder of their own and without their dependencies: the environment stays as constraints.txt pins it.
$(PEERS)/.ready: tests/peers/requirements.txt $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(PEERS) -r $<
	@touch $@

peers: $(PEERS)/.ready
	PYTHONPATH=$(PEERS) $(BIN)/python -m pytest -m peers

# One thread, in Python's and in BLAS' loops; a quiet machine is needed.
BENCHMARK := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONPATH=$(PEERS):benchmarks $(BIN)/python -m side_by_side

bench: $(PEERS)/.ready
	$(BENCHMARK)

bench-quick: $(READY)
	$(BENCHMARK) --quick

$(FOREIGN)/.ready: tests/foreign/requirements.txt $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(FOREIGN) -r $<
	@touch $@

foreign: $(FOREIGN)/.ready
	PYTHONPATH=$(FOREIGN) $(BIN)/python -m pytest -m foreign tests/foreign

$(BROWSER)/.ready: tests/browser/requirements.txt $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(BROWSER) -r $<
	@touch $@

browser: $(BROWSER)/.ready
	PYTHONPATH=$(BROWSER) $(BIN)/python -m pytest -m browser tests/browser

matrix: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/matrix/page.py

DATA ?= data
PAPERS = $(filter-out %/page.py,$(shell grep -l "^if __name__" analyses/papers/*.py))

# Checkpoints and results files stay in papers/runs: what has been computed is not computed again.
papers-quick: $(READY)
	for script in $(PAPERS); do OMP_NUM_THREADS=1 $(BIN)/python $$script --quick --data $(DATA) --out papers || exit 1; done
	$(BIN)/python analyses/papers/page.py papers

$(DOCS)/.ready: docs/site/requirements.txt $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(DOCS) -r $<
	@touch $@

# Any warning is an error. The search needs a server; the pages can also be opened from the disk.
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(DOCS) $(BIN)/python -m mkdocs build --strict
	@echo "site/index.html is the first page; to search: $(BIN)/python -m http.server -d site -b localhost 8000"

$(COVERAGE)/.ready: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(COVERAGE) coverage==7.17.5 pytest-cov==7.1.0
	@touch $@

coverage: $(COVERAGE)/.ready
	PYTHONPATH=$(COVERAGE) $(BIN)/python -m pytest $(IN_PARALLEL) --cov=spectra --cov=spectra_cli --cov-report=term-missing:skip-covered

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(READY)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist site *.egg-info
