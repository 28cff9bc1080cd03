# Two commands do everything: `make demo` and `make test`. `make` alone lists the others.
# Each works in a virtual environment of its own, .venv, made on first use. Nothing is installed outside it.

PYTHON  ?= python3
WORKERS ?= 2
BIN     := .venv/bin
NEEDS   := settings.ini setup.py constraints.txt
PIP     := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test check lab notebooks student picture sync docs clean

help: ## List the commands
	@echo "usage: make COMMAND   (PYTHON=python3.12 chooses the Python that .venv is made with)"
	@sed -n 's/^\([a-z]*\):.*## /  \1|/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

demo: .venv/.demo ## Install, train IDEC on breast images, print the scores, write results/demo/report.html
	$(BIN)/bc_clust demo

test: check ## Install, check notebooks against the package, run the notebooks' cells and the tests
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers $(WORKERS) --do_print --timing
	$(BIN)/python -m pytest tests --timeout 900

check: .venv/.dev ## Only the checks: export and clean change nothing, the site's source is staged
	$(BIN)/python tests/check_notebooks.py export clean stage

lab: .venv/.notebook ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

notebooks: .venv/.dev ## Run every notebook in place, keep its outputs, clean it (NAMES="00 30" for some)
	$(BIN)/python tests/run_notebooks.py $(NAMES)

student: .venv/.python ## Write the notebooks without solutions into student/, to hand out (NAMES="00 30" for some)
	$(BIN)/python tests/student.py student $(NAMES)

picture: .venv/.dev ## Draw the picture of the README from the records in results/
	$(BIN)/python tests/picture.py

sync: .venv/.dev ## Write all that follows from notebooks and settings.ini: bc_clust/, README.md, CITATION.cff
	$(BIN)/python tests/derive.py
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

docs: .venv/.dev ## Build the site into _docs (needs Quarto)
	@PATH="$(CURDIR)/$(BIN):$$PATH"; command -v quarto >/dev/null || { \
	  echo "make docs needs Quarto (https://quarto.org/docs/get-started), which is not on the PATH."; \
	  echo "Install it from there, or, where its download is reachable, into .venv:"; \
	  echo "    $(BIN)/python -m pip install -e '.[docs]'"; exit 1; }
	rm -rf _proc
	PATH="$(CURDIR)/$(BIN):$$PATH" nbdev_docs --n_workers $(WORKERS)
	@test -s _docs/index.html || { echo "No page was built. nbdev stages nothing where a folder in the path begins with a dot: $(CURDIR)"; exit 1; }

clean: ## Remove .venv and everything built; notebooks, package and results stay
	rm -rf .venv student _proc _docs build dist *.egg-info results/demo .pytest_cache

# The stamps under .venv say what is installed; a change of the requirements installs again.
.venv/.python:
	@command -v "$(PYTHON)" >/dev/null || { echo "No $(PYTHON) here: install Python 3.10 or newer, or name yours: make PYTHON=/path/to/python"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "bc_clust needs Python 3.10 or newer; $(PYTHON) is $$("$(PYTHON)" -V 2>&1). Name a newer one: make PYTHON=python3.12"; exit 1; }
	@"$(PYTHON)" -m venv .venv || { echo "$(PYTHON) could not make .venv. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@touch $@

.venv/.demo: .venv/.python $(NEEDS)
	@echo "Installing into .venv. PyTorch is the large part: on Linux it brings its CUDA libraries, about 3 GB."
	$(PIP) -e .
	@touch $@

.venv/.dev: .venv/.python $(NEEDS)
	@echo "Installing into .venv. PyTorch is the large part: on Linux it brings its CUDA libraries, about 3 GB."
	$(PIP) -e '.[dev]'
	@touch .venv/.demo $@

.venv/.notebook: .venv/.demo
	$(PIP) -e '.[notebook]'
	@touch $@
