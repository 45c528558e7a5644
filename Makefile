# Two commands on a fresh machine with Python 3.11+ and pip: `make reproduce` and `make test`.
PYTHON ?= python3
CORES ?= all
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: reproduce test check clean-state

reproduce: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores $(CORES) reproduce_table

test: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" pytest -n 2 --dist loadfile

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" snakefmt --check Snakefile workflows
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --lint

# Resumable training states live outside Snakemake's outputs; this throws them away.
clean-state:
	rm -rf state

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "robuq_bench needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
