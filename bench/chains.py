#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes chains of qcow2 images quickly: the files are laid out by hand (qcow2
specification, "Header", "Refcount table", "Cluster mapping"), data clusters are
holes in the host file unless @fill is given, so that a thousand layers take a
few MiB.  `qemu-img check` accepts them."""
import random
import struct
import sys

CLUSTER = 65536
COPIED = 1 << 63
PER_L2 = CLUSTER // 8


def make_layer(path, size, clusters, backing=None, backing_format="qcow2",
               fill=None):
    """A qcow2 image in which the guest clusters of the list are allocated."""
    n_l1 = -(-size // (CLUSTER * PER_L2))
    l1_clusters = max(1, -(-n_l1 * 8 // CLUSTER))
    l1_at = 3
    at = l1_at + l1_clusters
    tables, l1 = {}, {}
    for c in sorted(clusters):
        index = c // PER_L2
        if index not in tables:
            tables[index] = {}
            l1[index] = at
            at += 1
    for c in sorted(clusters):
        tables[c // PER_L2][c % PER_L2] = at
        at += 1
    if at > CLUSTER // 2:
        raise ValueError("too many clusters for one refcount block")
    name = (backing or "").encode()
    ext = b""
    if backing:
        fmt = backing_format.encode()
        ext += struct.pack(">II", 0xE2792ACA, len(fmt))
        ext += fmt + b"\0" * (-len(fmt) % 8)
    ext += struct.pack(">II", 0, 0)
    name_at = 104 + len(ext) if backing else 0
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, name_at, len(name), 16, size, 0,
        n_l1, l1_at * CLUSTER, CLUSTER, 1, 0, 0, 0, 0, 0, 4, 104)
    with open(path, "wb") as f:
        f.write(header + ext + name)
        f.seek(CLUSTER)
        f.write(struct.pack(">Q", 2 * CLUSTER))
        f.seek(2 * CLUSTER)
        f.write(struct.pack(">H", 1) * at)
        f.seek(l1_at * CLUSTER)
        if n_l1 <= PER_L2:
            f.write(b"".join(struct.pack(">Q", (l1[i] * CLUSTER) | COPIED
                                         if i in l1 else 0)
                             for i in range(n_l1)))
        else:
            for i, host in l1.items():
                f.seek(l1_at * CLUSTER + i * 8)
                f.write(struct.pack(">Q", (host * CLUSTER) | COPIED))
        for index, entries in tables.items():
            table = bytearray(CLUSTER)
            for i, host in entries.items():
                struct.pack_into(">Q", table, i * 8, (host * CLUSTER) | COPIED)
                if fill is not None:
                    f.seek(host * CLUSTER)
                    f.write(bytes([fill]) * CLUSTER)
            f.seek(l1[index] * CLUSTER)
            f.write(table)
        f.truncate(at * CLUSTER)


def make_chain(folder, depth, size, span, density=0.01, fill=False, seed=1):
    """@depth images, 0.qcow2 at the bottom, each with @density of the clusters
    of the first @span bytes allocated, the bottom with all of them (at most
    what one refcount block counts); returns the top's path."""
    rng = random.Random(seed)
    n = span // CLUSTER
    for i in range(depth):
        some = range(min(n, 32000)) if i == 0 \
            else rng.sample(range(n), max(1, int(n * density)))
        make_layer(f"{folder}/{i}.qcow2", size, some,
                   backing=f"{i - 1}.qcow2" if i else None,
                   fill=(i % 255 + 1) if fill else None)
    return f"{folder}/{depth - 1}.qcow2"


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: chains.py FOLDER DEPTH SIZE_GIB SPAN_GIB")
    print(make_chain(sys.argv[1], int(sys.argv[2]),
                     int(float(sys.argv[3]) * 2**30),
                     int(float(sys.argv[4]) * 2**30)))
