# make demo   a virtual environment, the embedded model, and the main job on samples/
# make test   the same environment, and every test
# make check  lint and types
# make bench  what a record costs, beside what others reach (an environment of its own; QUICK=1, PHASES="hot wide")
# make limits  limits told, found and shared, -c auto, against the rehearsal server (15 minutes; SECONDS=60)
# make crash  jobs killed 500 times and more, at every step and at random moments (half an hour)
# make crash-million  a million records killed 20 times, against the rehearsal server (RECORDS=… KILLS=…)

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
BENCH  := $(VENV)/bench
# what a record costs is measured with nothing else beside it
GUARD  := tests/perf/test_guard.py

# Modules stay compiled, as they are where a package is installed: tests start the program 600 times.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check crash crash-million limits bench clean

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "batchllm needs Python 3.11 or newer, this is " + sys.version'
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[local,simulate]'
	touch $@

$(VENV)/model.installed: $(VENV)/run.installed
	$(BIN)/batchllm models install local
	touch $@

$(VENV)/dev.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(VENV)/model.installed
	mkdir -p out
	$(BIN)/batchllm run samples/tickets.jsonl -j samples/triage.toml -o out/triage.jsonl
	@$(BIN)/python samples/show.py samples/tickets.jsonl out/triage.jsonl

test: $(VENV)/dev.installed
	$(BIN)/python -m pytest -n 3 --dist worksteal --ignore $(GUARD)
	$(BIN)/python -m pytest $(GUARD)

check: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BENCH)/bench.installed: pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[bench-flexllm]' || \
	  echo 'flexllm does not install here: it is left out'
	touch $@

bench: $(BENCH)/bench.installed
	$(BENCH)/bin/python -m tests.perf.bench $(if $(QUICK),--quick) $(PHASES)

crash: $(VENV)/dev.installed
	$(BIN)/python -m tests.crash.sweep --kills $(or $(KILLS),500)

crash-million: $(VENV)/dev.installed
	$(BIN)/python -m tests.crash.million --records $(or $(RECORDS),1000000) --kills $(or $(KILLS),20)

limits: $(VENV)/dev.installed
	$(BIN)/python -m tests.limits.proof --seconds $(or $(SECONDS),180)

clean:
	rm -rf out $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
