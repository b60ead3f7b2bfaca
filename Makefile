# `make run` and `make test` are all a newcomer needs; both work from nothing and are quick the second time.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PYX    := $(wildcard */_*/*.pyx) $(wildcard */_*/*.pxd)

.PHONY: run test check bench docs build clean lint sanitize

run: build ## Build, then serve everything on embedded defaults at http://127.0.0.1:8787
	@exec $(BIN)/torpor serve

build: $(VENV)/.built ## The virtual environment and the Cython extensions

$(VENV)/.created:
	@echo "» creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit("Torpor needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

# Editable, so that Python changes need no build; a change of pyproject.toml, setup.py or Cython sources does.
# PYTHONWARNINGS: setuptools reminds everyone who installs this way that folders shadow packages; here they are meant to.
$(VENV)/.built: $(VENV)/.created pyproject.toml setup.py $(PYX)
	@echo "» installing torpor and building its extensions (about a minute the first time)"
	@$(BIN)/python -m pip install --quiet --progress-bar off 'setuptools>=80' 'Cython>=3.1'
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --progress-bar off --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.built tests/support/install.sh tests/support/package-lock.json
	@echo "» installing what the tests need"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --progress-bar off --no-build-isolation --editable '.[test,dev]'
	@tests/support/install.sh
	@touch $@

lint: $(VENV)/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/codespell

check: lint ## Lint, types and the quick tests: under a minute
	@$(BIN)/pytest -q -n 2 --dist worksteal -m 'not slow and not browser and not netns' tests/unit tests/test_layering.py tests/test_exports.py

# What starts servers, browsers and other programs has the machine for itself.
test: lint ## Everything
	@$(BIN)/pytest -n 2 --dist worksteal tests/unit tests/fuzz tests/test_*.py
	@$(BIN)/pytest tests/scenario tests/examples tests/interop

bench: $(VENV)/.test ## Speed, as ratios against a ceiling and a peer in the same run
	@$(BIN)/python -m benchmarks

sanitize: $(VENV)/.test ## The native code under address and undefined-behaviour sanitizers (some minutes)
	@tests/support/sanitize.sh tests/unit/hibernation tests/scenario/test_objects_at_once.py tests/unit/turn/test_relay.py tests/unit/turn/test_framing.py tests/scenario/test_turn_stream_threads.py tests/scenario/test_turn_tls_threads.py tests/unit/sfu/test_plane_*.py

docs: $(VENV)/.built ## The OpenAPI document, from the code
	@$(BIN)/torpor openapi > docs/openapi.json

clean:
	rm -rf $(VENV) build *.egg-info tests/support/node_modules tests/support/dist loadtest/peers/npm/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name '__pycache__' -prune -exec rm -rf {} +
	find wire sfu turn objects hibernation loadtest -path '*/_*/*' \( -name '*.c' -o -name '*.so' \) -delete
