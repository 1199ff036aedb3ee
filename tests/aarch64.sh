#!/usr/bin/env bash
# Runs the kernels' suite on NEON under emulation: `make test-aarch64`. Correctness only; emulated times mean nothing.
#
# Needs a standard library for the target, a linker, its C library and qemu. As root on Debian, installs what is
# missing; otherwise says what to install.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
sysroot=/usr/aarch64-linux-gnu
linker=aarch64-linux-gnu-gcc
emulator=qemu-aarch64

# Whether the compiler `$1` has the target's standard library.
has_std() {
    command -v "$1" > /dev/null && ls "$("$1" --print target-libdir --target $target 2> /dev/null)"/libstd-*.rlib > /dev/null 2>&1
}

refuse() {
    echo "test-aarch64: $1" >&2
    exit 1
}

packages=()
command -v $linker > /dev/null || packages+=(gcc-aarch64-linux-gnu)
[ -e $sysroot/lib/libc.so.6 ] || packages+=(libc6-dev-arm64-cross)
command -v $emulator > /dev/null || packages+=(qemu-user)
debian_std=
# rustup's compiler if its target was added; else Debian's, whose library for the target is a package of another machine.
if ! has_std rustc && ! has_std /usr/bin/rustc; then
    [ -x /usr/bin/rustc ] || packages+=(rustc-web)
    debian_std=libstd-rust-web-dev:arm64
fi

if [ ${#packages[@]} -gt 0 ] || [ -n "$debian_std" ]; then
    missing="${packages[*]} ${debian_std:+$debian_std (or: rustup target add $target)}"
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || refuse "missing, install first: $missing"
    [ -z "$debian_std" ] || dpkg --add-architecture arm64
    apt-get update -qq
    [ ${#packages[@]} = 0 ] || apt-get install -qq --yes --no-install-recommends "${packages[@]}" > /dev/null
    if [ -n "$debian_std" ]; then
        # Unpacked, not installed: its dependencies are programs for the other machine.
        unpacked=$(mktemp --directory)
        trap 'rm -rf "$unpacked"' EXIT
        (cd "$unpacked" && apt-get download -qq $debian_std && dpkg -x ./*.deb .)
        cp --recursive "$unpacked/usr/lib/rustlib/$target" /usr/lib/rustlib/
    fi
fi

if ! has_std rustc; then
    has_std /usr/bin/rustc || refuse "no compiler with a standard library for $target"
    export RUSTC=/usr/bin/rustc
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$linker
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$emulator -L $sysroot"
# A folder of its own: another compiler would rebuild everything in the usual one.
exec "${CARGO:-cargo}" test --quiet --package resnet-kernels --lib --target $target --target-dir target/aarch64 "$@"
