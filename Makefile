# The two commands: `make run` and `make test`. Everything is set up on first use; packages come from the lock and nowhere else.
PYTHON ?= python3
# Relative, so that a clone in a path with a space works.
BIN := .venv/bin
READY := .venv/ready
UV := .venv/uv/bin/uv

export PATH := $(CURDIR)/$(BIN):$(PATH)
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: run test ui lint lock bench clean

run: $(READY)
	$(BIN)/python -m dvc repro

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

ui: $(READY)
	$(BIN)/python -m stages.cli ui

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

bench: $(READY)
	$(BIN)/python benchmarks/bench.py $(BENCH)

# A marker with the lock's time: a second `make` installs nothing. Hashes are required of every package.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 13) else "error: graft needs Python 3.10 to 3.13, this is %d.%d; name another: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)

# Resolve pyproject.toml anew, for every Python version and platform at once.
lock:
	test -x $(UV) || ($(PYTHON) -m venv .venv/uv && .venv/uv/bin/python -m pip install --quiet uv)
	$(UV) pip compile pyproject.toml --universal --python-version 3.10 --extra onnx --extra dev \
	  --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" --upgrade --output-file requirements.lock

clean:
	rm -rf .venv .cache mlruns
