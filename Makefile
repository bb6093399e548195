# Everything that a newcomer needs: make demo, make test. Everything that a contributor needs: make check, make bench.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LIGHT  := $(VENV)/.installed-light

.PHONY: install demo runbook test test-slow check format bench clean

install: $(STAMP)

# all that the tests need: PyTorch, ModelOpt and Brevitas too
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[llamacpp,banks,sensitivity,detection,extraction,vision,dev]'
	touch $(STAMP) $(LIGHT)

# what GGUF models need, no more
$(LIGHT): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[llamacpp,banks]'
	touch $(LIGHT)

demo: $(LIGHT)
	$(BIN)/fewbits demo

runbook: install
	$(BIN)/python scripts/run_runbook.py

test: install
	$(BIN)/python -m pytest -m "not slow and not gpu and not bench" -n 2 --dist loadgroup

test-slow: install
	$(BIN)/python -m pytest -m "slow"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_docs.py

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) build dist *.egg-info
