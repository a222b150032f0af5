# The two commands: `make run` and `make test`. Everything is set up on first use; packages come from the lock and nowhere else.
PYTHON ?= python3
# Relative, so that a clone in a path with a space works.
BIN := .venv/bin
READY := .venv/ready
UV := .venv/uv/bin/uv

export PATH := $(CURDIR)/$(BIN):$(PATH)
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: run test test-slow ui lint wheel lock upgrade-check licences bench reproduce clean distclean

run: $(READY)
	$(BIN)/python -m graft.tracking.dvc_lock
	$(BIN)/python -m dvc repro
	@echo "Open data/evaluate/card.html. For photos of your own: source $(BIN)/activate, then graft check FOLDER"

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

# Whole pipelines under DVC. 5 is pytest's word for "no such test".
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow -n 2 --dist worksteal || test $$? -eq 5

ui: $(READY)
	$(BIN)/python -m graft.commands.main ui

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# In a clone of its own: resolve anew, say what is newer, run lint and all tests with that. An hour.
UPGRADE := .cache/upgrade
upgrade-check:
	rm -rf $(UPGRADE)
	git clone --quiet . $(UPGRADE)
	cd $(UPGRADE) && $(MAKE) lock
	git -C $(UPGRADE) diff --unified=0 requirements.lock | grep -E '^[-+][a-z0-9]' || echo "nothing is newer"
	cd $(UPGRADE) && $(MAKE) lint && $(MAKE) test && $(MAKE) test-slow

licences: $(READY)
	$(BIN)/python docs/licences.py

# Two fresh clones, other conditions: the same bytes? Minutes.
reproduce: $(READY)
	$(BIN)/python benchmarks/reproduce.py

bench: $(READY)
	$(BIN)/python benchmarks/bench.py $(BENCH)

# For `pip install dist/*.whl` elsewhere, then `graft new`. The same commit gives the same bytes.
wheel: $(READY)
	rm -rf build dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
	  --no-build-isolation --wheel-dir dist .
	rm -rf build

# A marker with the lock's time: a second `make` installs nothing. Hashes are required of every package.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 13) else "error: graft needs Python 3.10 to 3.13, this is %d.%d; name another: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)

# Resolve pyproject.toml anew, for every Python version and platform at once. The other locks install nothing: they are what
# dvc.yaml makes stages depend on, the same versions without hashes, since a new wheel of a version changes no result.
# What runs the stages (dvc, ruff, pytest) is in none of them.
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.10 --no-emit-index-url --no-annotate \
  --custom-compile-command "make lock" --output-file
PINS = --constraint requirements.lock
lock:
	test -x $(UV) || ($(PYTHON) -m venv .venv/uv && .venv/uv/bin/python -m pip install --quiet uv)
	$(COMPILE) requirements.lock pyproject.toml --extra onnx --extra dev --generate-hashes --upgrade
	echo dvc > .venv/uv/excluded
	$(COMPILE) requirements-run.lock pyproject.toml $(PINS) --excludes .venv/uv/excluded
	printf '%s\n' numpy pillow matplotlib | $(COMPILE) requirements-decode.lock - $(PINS)
	printf '%s\n' onnx onnxruntime tf2onnx | $(COMPILE) requirements-onnx.lock - $(PINS)

# What can be made again. The runs and models in mlruns cannot: only distclean deletes them, and asks.
clean:
	rm -rf .venv .cache

distclean:
	@if [ "$(YES)" != 1 ]; then \
	  test -t 0 || { echo "error: this deletes mlruns, with every run and model in it; without a terminal to ask, say YES=1" >&2; exit 1; }; \
	  printf 'This deletes mlruns, with every run and model in it, beside .venv and .cache. Type yes to go on: '; \
	  read -r answer; \
	  test "$$answer" = yes || { echo "nothing was deleted" >&2; exit 1; }; \
	fi
	test ! -d mlruns || find mlruns/ -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	rm -rf .venv .cache
