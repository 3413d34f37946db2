#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Installs the Debian packages that the build (and, with --tests, the tests
# and the demo) need and that are missing.  Does nothing where all are there.
set -eu
packages="gcc meson ninja-build pkg-config python3 liburing-dev libjansson-dev
    libnbd-dev libzstd-dev zlib1g-dev"
if [ "${1-}" = --tests ]; then
    packages="$packages clang qemu-utils qemu-system-common nbdkit libnbd-bin
        fio e2fsprogs xfsprogs btrfs-progs zstd strace util-linux valgrind"
fi
missing=
for p in $packages; do
    dpkg-query -W -f '${Status}\n' "$p" 2>/dev/null |
        grep -q '^install ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "setup: these packages are missing:$missing" >&2
    echo "setup: run as root: apt-get install$missing" >&2
    exit 1
fi
echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
{ apt-get update -q && apt-get install -y -q --no-install-recommends $missing; } \
    > /tmp/sluice-setup.log 2>&1 </dev/null || {
    tail -n 20 /tmp/sluice-setup.log >&2
    echo "setup: apt-get failed; the whole log is /tmp/sluice-setup.log" >&2
    exit 1
}
