# `make check` does what .ci/run does, in the environment you are in. Everything runs through one Python: PYTHON=... picks it.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

.PHONY: check format lint types tests slow gpu fix environment demo clean

check: format lint types tests

format:  ## is the code formatted?
	$(PYTHON) -m ruff format --check .

lint:  ## is it free of lint?
	$(PYTHON) -m ruff check .

types:  ## do the type hints agree?
	$(PYTHON) -m pyrefly check --python-interpreter-path "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

tests:  ## the quick suite: CPU, no network, warnings are errors
	$(PYTHON) -m pytest

slow:  ## the tests that take minutes
	$(PYTHON) -m pytest -m slow

gpu:  ## the tests that need a CUDA device
	$(PYTHON) -m pytest -m gpu -n 0

fix:  ## format, and mend what ruff can mend
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

environment: .venv/bin/diptych  ## .venv with everything that `make check` needs (about 3 GB, because torch is)

.venv/bin/diptych: pyproject.toml constraints.txt
	python3 -m venv .venv
	.venv/bin/python -m pip install -e ".[dev]" -c constraints.txt
	touch $@

demo:  ## train, measure and report on a small set of images, on the CPU
	$(PYTHON) -m diptych demo

clean:  ## remove what the tools left behind, never a run
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
