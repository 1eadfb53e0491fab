# Everything runs in .venv, which is made where it is missing, from setup.cfg at the versions of constraints.txt.
PYTHON ?= python3
RUN = .venv/bin/python

.PHONY: demo test test-slow test-lowest test-newest test-container lint bench

demo: .venv/installed
	$(RUN) training/demo_ecg.py
	$(RUN) training/demo_msa.py

test: .venv/installed
	$(RUN) -m pytest

test-slow: .venv/installed
	$(RUN) -m pytest -m slow

# the lowest and the newest versions that setup.cfg allows, each in a place of its own
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/lowest_versions.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --constraint .venv-lowest/constraints.txt --editable '.[test]'
	.venv-lowest/bin/python -m pytest

test-newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable '.[test]'
	.venv-newest/bin/python -m pytest

# what the Dockerfile's lines do, without docker: its requirements alone, its server, a model, a question
test-container: .venv/installed
	rm -rf .venv-container
	$(PYTHON) -m venv .venv-container
	.venv-container/bin/pip install --quiet -r model_cards/ecgmamba/requirements.txt -r model_cards/container/requirements.txt
	CONTAINER_PYTHON=$(CURDIR)/.venv-container/bin/python $(RUN) -m pytest -m slow tests/test_container_environment.py

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

bench: .venv/installed
	for script in benchmarks/*.py; do $(RUN) $$script || exit 1; done

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
