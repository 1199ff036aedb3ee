#!/usr/bin/env bash
# Runs the tests of resnet-kernels on NEON under QEMU: `make test-aarch64`. Checks correctness only, not speed.
#
# Requires the Rust standard library for the target, a cross linker, its C library and QEMU. As root on Debian, installs
# the missing packages; otherwise lists them.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
sysroot=/usr/aarch64-linux-gnu
linker=aarch64-linux-gnu-gcc
emulator=qemu-aarch64

# Succeeds if the compiler `$1` has the standard library for the target.
has_std() {
    command -v "$1" > /dev/null && ls "$("$1" --print target-libdir --target $target 2> /dev/null)"/libstd-*.rlib > /dev/null 2>&1
}

die() {
    echo "test-aarch64: $1" >&2
    exit 1
}

packages=()
command -v $linker > /dev/null || packages+=(gcc-aarch64-linux-gnu)
[ -e $sysroot/lib/libc.so.6 ] || packages+=(libc6-dev-arm64-cross)
command -v $emulator > /dev/null || packages+=(qemu-user)
debian_std=
# Uses rustup's compiler if its target is installed, else Debian's, whose library for the target is an arm64 package.
if ! has_std rustc && ! has_std /usr/bin/rustc; then
    [ -x /usr/bin/rustc ] || packages+=(rustc-web)
    debian_std=libstd-rust-web-dev:arm64
fi

if [ ${#packages[@]} -gt 0 ] || [ -n "$debian_std" ]; then
    missing="${packages[*]} ${debian_std:+$debian_std (or: rustup target add $target)}"
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || die "missing packages: $missing"
    [ -z "$debian_std" ] || dpkg --add-architecture arm64
    apt-get update -qq
    [ ${#packages[@]} = 0 ] || apt-get install -qq --yes --no-install-recommends "${packages[@]}" > /dev/null
    if [ -n "$debian_std" ]; then
        # Unpacked, not installed: its dependencies are arm64 programs.
        unpacked=$(mktemp --directory)
        trap 'rm -rf "$unpacked"' EXIT
        (cd "$unpacked" && apt-get download -qq $debian_std && dpkg -x ./*.deb .)
        cp --recursive "$unpacked/usr/lib/rustlib/$target" /usr/lib/rustlib/
    fi
fi

if ! has_std rustc; then
    has_std /usr/bin/rustc || die "no compiler with the standard library for $target"
    export RUSTC=/usr/bin/rustc
fi
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$linker
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$emulator -L $sysroot"
# Separate target directory: a different compiler would rebuild everything in the default one.
exec "${CARGO:-cargo}" test --quiet --package resnet-kernels --lib --target $target --target-dir target/aarch64 "$@"
