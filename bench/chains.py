#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Makes chains of qcow2 images quickly: the files are laid out by hand (qcow2
specification, "Header", "Refcount table", "Cluster mapping"), data clusters are
holes in the host file unless they are filled, so that a thousand layers take a
few MiB.  `qemu-img check` accepts them."""
import functools
import random
import struct
import sys
from array import array
from bisect import bisect_left

CLUSTER = 65536
COPIED = 1 << 63


def big_endian(numbers):
    return b"".join(n.to_bytes(8, "big") for n in numbers)


@functools.cache
def as_one_number(entries, first, step):
    """A table of such 64 bit numbers, read as one."""
    return int.from_bytes(big_endian(first + i * step for i in range(entries)),
                          "big")


class Layout:
    """Where things lie in the file, in clusters: header, refcount table,
    refcount blocks, L1 table, L2 tables, data, without a gap."""

    def __init__(self, size, clusters, cluster):
        self.per_table = cluster // 8
        guest = -(-size // cluster)
        self.l1_entries = -(-guest // self.per_table)
        self.tables = [  # (index in L1, first and end in @clusters)
            (t, a, b) for t, a, b in self.cut(clusters) if a < b]
        l1 = max(1, -(-self.l1_entries * 8 // cluster))
        known = 1 + l1 + len(self.tables) + len(clusters)
        table = blocks = 1
        while (blocks * (cluster // 2) < known + table + blocks or
               table * self.per_table < blocks):
            blocks = -(-(known + table + blocks) // (cluster // 2))
            table = -(-blocks // self.per_table)
        self.refcount_table, self.refcount_blocks = table, blocks
        self.l1_at = 1 + table + blocks
        self.l2_at = self.l1_at + l1
        self.data_at = self.l2_at + len(self.tables)
        self.end = self.data_at + len(clusters)

    def cut(self, clusters):
        end = 0
        for t in range(self.l1_entries):
            start = end
            end = bisect_left(clusters, (t + 1) * self.per_table, start)
            yield t, start, end


def make_header(size, layout, cluster, backing, backing_format):
    name = (backing or "").encode()
    ext = b""
    if backing:
        fmt = backing_format.encode()
        ext += struct.pack(">II", 0xE2792ACA, len(fmt))
        ext += fmt + b"\0" * (-len(fmt) % 8)
    ext += struct.pack(">II", 0, 0)
    name_at = 104 + len(ext) if backing else 0
    return struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, name_at, len(name),
        cluster.bit_length() - 1, size, 0, layout.l1_entries,
        layout.l1_at * cluster, cluster, layout.refcount_table, 0, 0, 0, 0, 0,
        4, 104) + ext + name


def make_table(clusters, entries, at, cluster):
    """The L2 table in which @clusters lie one behind the other from @at on."""
    if len(clusters) == entries:
        # 64 TiB have millions of entries: one addition for a whole table.
        table = as_one_number(entries, 0, cluster) + \
            (COPIED + at) * as_one_number(entries, 1, 0)
        return table.to_bytes(entries * 8, "big")
    table = bytearray(entries * 8)
    for i, c in enumerate(clusters):
        struct.pack_into(">Q", table, c % entries * 8,
                         COPIED + at + i * cluster)
    return table


def make_layer(path, size, clusters, backing=None, backing_format="qcow2",
               fill=(), cluster=CLUSTER):
    """A qcow2 image in which the guest clusters in @clusters, ascending, are
    allocated; those in the set @fill hold data."""
    layout = Layout(size, clusters, cluster)
    with open(path, "wb") as f:
        f.write(make_header(size, layout, cluster, backing, backing_format))
        f.seek(cluster)
        f.write(big_endian((1 + layout.refcount_table + i) * cluster
                           for i in range(layout.refcount_blocks)))
        f.seek((1 + layout.refcount_table) * cluster)
        f.write(b"\0\1" * layout.end)
        l1 = [0] * layout.l1_entries
        for i, (t, first, end) in enumerate(layout.tables):
            l1[t] = COPIED + (layout.l2_at + i) * cluster
            f.seek((layout.l2_at + i) * cluster)
            f.write(make_table(clusters[first:end], layout.per_table,
                               (layout.data_at + first) * cluster, cluster))
        f.seek(layout.l1_at * cluster)
        f.write(big_endian(l1))
        for i, c in enumerate(clusters if fill else ()):
            if c in fill:
                f.seek((layout.data_at + i) * cluster)
                f.write((c * 2654435761 % 2**32 | 1).to_bytes(8, "big")
                        * (cluster // 8))
        f.truncate(layout.end * cluster)


def make_chain(folder, depth, size, density=0.01, fill=False, seed=1,
               cluster=CLUSTER):
    """@depth images, 0.qcow2 at the bottom, in which all clusters are
    allocated; in each above it @density of them, scattered.  @fill: what the
    guest can see of them holds data; what a layer above hides stays a hole.
    Returns the top's path."""
    rng = random.Random(seed)
    n = -(-size // cluster)
    layers = [range(n)]
    for _ in range(depth - 1):
        some = array("Q", rng.randbytes(8 * max(1, int(n * density))))
        layers.append(sorted({c % n for c in some}))
    hidden, visible = set(), [set()] * depth
    for i in reversed(range(depth) if fill else ()):
        visible[i] = set(layers[i]) - hidden
        hidden |= visible[i]
    for i, some in enumerate(layers):
        make_layer(f"{folder}/{i}.qcow2", size, some,
                   backing=f"{i - 1}.qcow2" if i else None, fill=visible[i],
                   cluster=cluster)
    return f"{folder}/{depth - 1}.qcow2"


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: chains.py FOLDER DEPTH SIZE_GIB")
    print(make_chain(sys.argv[1], int(sys.argv[2]),
                     int(float(sys.argv[3]) * 2**30)))
