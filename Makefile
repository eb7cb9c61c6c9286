# Every target makes its own .venv first; once made, it is made again only when pyproject.toml or constraints.txt change.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# torch comes first and by itself, so that a CPU build which is at hand is taken and no other package chooses another.
# Elsewhere a CPU build needs its index: make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
# Test processes; more than one core each would only make small tensors wait for each other.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); test $$n -gt 4 && echo 4 || echo $$n)
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help venv demo test check format bench clean distclean

help:
	@echo "make demo       two images, with and without acceleration, and the comparison table"
	@echo "make test       the tests that need neither an accelerator nor another implementation"
	@echo "make check      ruff, formatting, mypy, and the plans that come with hasten"
	@echo "make format     let ruff mend what it can"
	@echo "make bench      a report in outputs/, then the measurements behind the tables in docs/ (long)"
	@echo "make clean      remove what was built (distclean: the .venv too)"

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/hasten generate "a red circle left of a blue square" --compare

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not slow and not gpu and not peer"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hasten plan check src/hasten/presets/*.yaml

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/hasten bench --plans taylorseer,reuse --prompts builtin:5 --out outputs/bench-$$(date +%Y%m%d-%H%M%S)
	$(BIN)/python -m benchmarks step-cost predictors methods bench bench-overhead bench-unchanged

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
