#!/usr/bin/env bash
# Trains in two processes under mpirun and compares with one process: `make test-mpi`.
#
# Needs an MPI library with its launcher and compiler wrapper, and libclang, which reads the library's header. As root on
# Debian, installs missing packages; otherwise lists them.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=()
command -v mpicc > /dev/null || packages+=(libopenmpi-dev)
command -v mpirun > /dev/null || packages+=(openmpi-bin)
ldconfig -p 2> /dev/null | grep -q 'libclang[-.0-9]*\.so' || [ -n "${LIBCLANG_PATH:-}" ] || packages+=(libclang-dev)
if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        echo "test-mpi: missing, install first: ${packages[*]}" >&2
        exit 1
    fi
    apt-get update -qq
    apt-get install -qq --yes --no-install-recommends "${packages[@]}" > /dev/null
fi

"${CARGO:-cargo}" clippy --quiet --package resnet-train --package resnet-cli --features resnet-cli/mpi --all-targets -- -D warnings
# One after the other: each test has two processes already.
exec "${CARGO:-cargo}" test --quiet --package resnet-cli --features mpi --test e2e "$@" workers -- --test-threads 1
