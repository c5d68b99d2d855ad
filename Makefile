# make quickstart: from nothing to class-conditional digits.    make test: the same set-up, then the tests (CONTRIBUTING.md).
# On Linux, pip's torch is the CUDA build (several GB). For the CPU build, give pip an index that has it:
#   make quickstart PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin

.PHONY: quickstart test-fast test integration demo-tests quality docs style bench race torture fuzz compat gpu dist clean
.DEFAULT_GOAL := quickstart

# Made anew when what is installed changes, else reused.
.venv/installed: setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "expected Python 3.11 or newer, got " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt --editable ".[test]"
	@touch $@

# What only the site and the notebook need.
.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt --editable ".[docs]"
	@touch $@

quickstart: .venv/installed
	$(BIN)/cond-ddpm quickstart
	@echo
	@echo "Before these commands, once in each terminal: . .venv/bin/activate"

# Each worker has one torch thread, which tests/conftest.py sets: threads of several programs would wait for each other.
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS)

test-fast: .venv/installed
	$(PYTEST) -m "not end_to_end and not integration and not slow"

test: .venv/installed
	$(PYTEST) --dist worksteal -m "not integration and not slow"

integration: .venv/installed .venv/docs demo-tests
	$(PYTEST) --dist loadfile -m "integration and not slow"

# gradio needs an older Pillow and pydantic than the other tests: an environment with its own, and all else from .venv.
DEMO := .venv-demo/bin/python
.venv-demo/installed: .venv/installed Makefile
	rm -rf .venv-demo && $(BIN)/python -m venv .venv-demo
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > `$(DEMO) -c 'import sysconfig; print(sysconfig.get_path("purelib"))'`/dependencies.pth
	grep -vE '^(pillow|pydantic|pydantic_core)==' constraints.txt > .venv-demo/constraints.txt
	$(DEMO) -m pip install --quiet --disable-pip-version-check --constraint .venv-demo/constraints.txt \
		"gradio[mcp]==6.31.0" playwright==1.65.2
	@touch $@

demo-tests: .venv-demo/installed
	PYTHONPATH=. $(DEMO) -m pytest tests/test_demo.py tests/test_demo_browser.py

# mypy sees a tree of links, in which pipelines/ and configs/ lie inside the package as they do once it is installed.
quality: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types/cond_ddpm
	ln -s $(CURDIR)/cond_ddpm/* $(CURDIR)/pipelines $(CURDIR)/configs build/types/cond_ddpm/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache

# The site, in build/docs/index.html; the internet is not needed.
docs: .venv/docs
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs

# An hour and more, with nothing else running; DATASET is CIFAR-10, by its Hub id or a local folder.
DATASET ?= cifar10
bench: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps denoising-diffusion-pytorch einops
	$(BIN)/python benchmarks/layers.py
	$(BIN)/python benchmarks/training.py --compile
	$(BIN)/python benchmarks/sampling.py peers
	$(BIN)/python benchmarks/sampling.py inference
	$(BIN)/python benchmarks/data.py --dataset $(DATASET)
	$(BIN)/python benchmarks/race.py --dataset $(DATASET)

# Two hours, with nothing else running: MINUTES of training for ours and for each peer; the rows of docs/leaderboard.md.
MINUTES ?= 30
race: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps denoising-diffusion-pytorch einops
	$(BIN)/python benchmarks/race.py --dataset $(DATASET) --minutes $(MINUTES)

# An hour, with strace: every command killed in the middle of its writes, run again and compared.
torture: .venv/installed
	$(BIN)/python benchmarks/torture.py

# Ten minutes: changed files of every kind that is read from outside; each is read or refused in one line.
fuzz: .venv/installed
	$(BIN)/python benchmarks/fuzz.py

# Half an hour and several GB: the lowest and the newest versions, in throwaway environments; writes docs/compatibility.md.
compat:
	$(PYTHON) benchmarks/compat.py --pip_args="$(PIP_ARGS)"

# On a machine with a GPU, with the python that is there and without the internet: tests, throughput, train or evaluate. Each ends
# within nine minutes and goes on from the folder OUT, which is what to keep.
STAGE ?= tests
OUT ?= runs/gpu
gpu:
	$(PYTHON) benchmarks/gpu.py $(STAGE) --output $(OUT) $(GPU_ARGS)

# The source archive and the wheel in dist/, checked as PyPI checks them; CONTRIBUTING.md says how they are released.
dist: .venv/installed
	rm -rf dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) twine
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

style: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-demo .mypy_cache build dist *.egg-info
