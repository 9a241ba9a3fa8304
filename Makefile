# `make test` and `make demo` set everything up; needed beforehand: Python 3.11 with venv, a C++17 compiler, make.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# The kernel library is made from its folder and from the tables of operators and steps.
LIBRARY_SOURCES := $(shell find bnnfx/csrc -type f) $(addprefix bnnfx/ops/,epilogue.py recorder.py signatures.py steps.py)
NATIVE_BUILD := $(BIN)/cmake -S tests/native -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
  -DPython3_EXECUTABLE=$(CURDIR)/$(BIN)/python --log-level=WARNING
FASHION_MNIST := /usr/share/datasets/fashion-mnist

.PHONY: test test-arm test-asan sweep-operators sweep-models fuzz demo data browser clean

test: $(READY) data browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/pytest --doctest-modules bnnfx
	$(BIN)/pytest -n 2 --durations=10

# The kernels on AArch64, under an emulator: a cross-compiler and qemu-user are fetched where apt-get may do so.
ARM_PACKAGES := g++-aarch64-linux-gnu qemu-user

test-arm: $(READY)
	@missing() { for tool in aarch64-linux-gnu-g++ qemu-aarch64; do command -v $$tool >/dev/null || echo $$tool; done; }; \
	if [ -n "$$(missing)" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y $(ARM_PACKAGES); } \
	    >/dev/null 2>&1 || true; \
	fi; \
	if [ -n "$$(missing)" ]; then \
	  echo "test-arm is skipped:" $$(missing) "not found; Debian's packages $(ARM_PACKAGES) have them."; exit 0; \
	fi; \
	set -ex; \
	$(NATIVE_BUILD) -B build/native-arm -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/tests/native/aarch64.cmake; \
	$(BIN)/cmake --build build/native-arm --target check

# AddressSanitizer and UndefinedBehaviorSanitizer. Python itself is not built with them, so they are loaded before it;
# and so is the C++ library, where they look for the function that throws exceptions.
PRELOAD = $(shell $(CXX) -print-file-name=libasan.so) $(shell $(CXX) -print-file-name=libstdc++.so)

test-asan: export UBSAN_OPTIONS = print_stacktrace=1
test-asan: $(READY)
	$(NATIVE_BUILD) -B build/native-asan -DBNNFX_SANITIZE=ON
	$(BIN)/cmake --build build/native-asan --target check
	LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 $(BIN)/pytest tests/kernels \
	  --kernel-library build/native-asan/library/libbnnfx_ops.so

# All operators of torch and torchvision, of which `make test` takes a share; and whole models of torchvision and timm:
# all, or those of `make sweep-models MODELS=...`, patterns of names or the list `families`.
sweep-operators: $(READY)
	$(BIN)/pytest -n 2 --all-operators tests/sweeps

sweep-models: $(READY)
	$(BIN)/python tests/sweeps/models.py $(MODELS)

# Random networks through the whole chain, and mutated files through ONNX Runtime, N of the one and several of the other;
# what fails is printed with its seed. FIRST is the seed to begin with.
N ?= 100
FIRST ?= 0

fuzz: $(READY)
	$(BIN)/python tests/sweeps/fuzz.py $(N) $(FIRST)

demo: $(READY) data
	$(BIN)/python examples/quickstart.py

# The build requirements go in first, because pip builds bnnfx with what is in .venv (no build isolation). Then one
# resolve for the rest: with torch pinned there, pip cannot start on the several gigabytes of another build of it.
# The rule runs again when a pin or the C++ library changes; pip then skips what is there already.
$(READY): pyproject.toml constraints.txt $(LIBRARY_SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq -c constraints.txt scikit-build-core cmake ninja
	$(BIN)/pip install -qq -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $@

# Debian's copy of Fashion-MNIST, for the quickstart and the tests on real data. They do without where it cannot be had.
data:
	@if [ -d $(FASHION_MNIST) ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y dataset-fashion-mnist; \
	fi >/dev/null 2>&1 || true; \
	[ -d $(FASHION_MNIST) ] || echo "Fashion-MNIST is missing: install Debian's package dataset-fashion-mnist."

# A browser for the tests of reports, which are skipped by name where there is none.
browser:
	@missing() { ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; }; \
	if missing && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
	    chromium chromium-driver; \
	fi >/dev/null 2>&1 || true; \
	! missing || echo "Chromium is missing: install Debian's packages chromium and chromium-driver."

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find bnnfx passes tests examples -name __pycache__ -prune -exec rm -rf {} +
