# make demo: a trained language model in minutes · make test: the whole suite · make lint · make bench
# make build: the extension, into src/ritornello (the others call it) · make wheel: into dist
# make sanitize: the engine under AddressSanitizer, ThreadSanitizer and between guard pages, some minutes
# make compilers: the engine by Clang, and for ARM64 (clang, g++-aarch64-linux-gnu and qemu-user on Debian)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CONFIGURE = $(BIN)/cmake -S . -G Ninja -Wno-unused-cli -DCMAKE_MAKE_PROGRAM="$(abspath $(BIN))/ninja" \
	-DPython_EXECUTABLE="$(abspath $(BIN))/python"

.PHONY: demo test lint format bench build wheel sanitize compilers clean

# torch goes first and by its exact version: other spellings can pull gigabytes of GPU libraries.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ritornello needs Python 3.11 or newer; say make PYTHON=/path/to/python3")'
	@echo "Setting up $(VENV): some minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/pip install -qq --disable-pip-version-check --constraint constraints.txt \
		--config-settings wheel.cmake=false --editable '.[dev]'
	@touch $@

# The work of `pip install`, but again only for what changed. Without a compiler it says so and succeeds.
build: $(READY)
	@$(CONFIGURE) -B build -DRITORNELLO_INPLACE=ON >/dev/null
	@$(BIN)/cmake --build build -- --quiet
	@$(BIN)/cmake --install build >/dev/null

wheel: $(READY)
	rm -rf build/wheel dist/*.whl
	RITORNELLO_REQUIRE_EXTENSION=1 $(BIN)/python -m build --wheel --no-isolation --outdir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl

# Programs recorded by Python, run without it; then wrong ones.
sanitize: build
	$(BIN)/python tests/native/record.py build/recorded
	@for watch in pages address thread; do \
		echo "The engine, watched by: $$watch"; \
		$(CONFIGURE) -B build/sanitize-$$watch -DRITORNELLO_WATCH=$$watch >/dev/null && \
		$(BIN)/cmake --build build/sanitize-$$watch --target driver -- --quiet && \
		build/sanitize-$$watch/driver replay build/recorded/*.txt && \
		{ test $$watch = thread || build/sanitize-$$watch/driver malformed 5000 build/recorded/*.txt; } || exit 1; \
	done

# The same programs by other compilers: by Clang, its warnings errors; for ARM64, run by an emulator.
compilers: build
	$(BIN)/python tests/native/record.py build/recorded
	@echo "Clang:"
	@$(CONFIGURE) -B build/clang -DRITORNELLO_WATCH=pages -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_CXX_FLAGS=-Werror >/dev/null
	@$(BIN)/cmake --build build/clang -- --quiet
	@build/clang/driver replay build/recorded/*.txt
	@echo "GCC for ARM64:"
	@$(CONFIGURE) -B build/arm64 -DRITORNELLO_WATCH=pages -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_EXE_LINKER_FLAGS=-static >/dev/null
	@$(BIN)/cmake --build build/arm64 --target driver -- --quiet
	@RITORNELLO_EMULATED=1 qemu-aarch64 build/arm64/driver replay build/recorded/*.txt

demo: build
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

test: build
	$(BIN)/python -m pytest --numprocesses 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: build
	$(BIN)/rit bench
	$(BIN)/python benchmarks/parity.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist src/ritornello/_core.*.so
