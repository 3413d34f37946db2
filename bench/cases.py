# SPDX-License-Identifier: BSD-3-Clause
"""All cases, and the bars that each has to reach."""
from copies import copy_cases
from durable import dirty_log, shared_log
from ground import GIB, MIB
from guest import allocating, idle, small
from judge import Bar, Either
from layers import DAEMONS, clones, deep
from peers import CEILING, DIRECT, NBDKIT
from streams import (busy_merge, busy_stream, far_stream, shared_convert,
                     shared_stream, stream)

QSDS = DIRECT  # those of them that a case ran on
TIB = 1024 * GIB


def cpu(peers, factor):
    return Bar("cpu_us", peers, factor, at_most=True)


def guest_cases(fmt):
    read, write = {"depth": 32}, {"depth": 32, "op": "write"}
    return [
        small("read 4k, depth 32", "ext4", fmt,
              [Bar("iops", CEILING, 0.9), cpu(QSDS, 0.6), cpu(NBDKIT, 0.8)],
              **read),
        small("read 4k, depth 32", "tmpfs", fmt,
              [Either(Bar("iops", CEILING, 0.9), Bar("iops", QSDS, 2)),
               cpu(QSDS, 0.45)], **read),
        small("read 4k, depth 32", "ext4", fmt,
              [Bar("iops", QSDS, 1), cpu(QSDS, 0.6)], direct=True, **read),
        small("write 4k, depth 32", "ext4", fmt,
              [Bar("iops", QSDS, 1), cpu(QSDS, 0.6)], direct=True, **write),
        *[small(f"read 4k, depth 1{where}", fs, fmt,
                [Bar("iops", QSDS, 1.35), Bar("iops", NBDKIT, 0.95)], depth=1,
                one_cpu=where != "")
          for fs in ("ext4", "tmpfs") for where in ("", ", on one CPU")],
        small("write 4k, depth 32", "ext4", fmt,
              [Bar("iops", QSDS, 1.3), cpu(QSDS, 0.6)], **write),
        small("write 4k, depth 32", "tmpfs", fmt,
              [Bar("iops", QSDS, 1.8), cpu(QSDS, 0.6)], **write),
        *[allocating(fs, fmt, [Bar("iops", QSDS, 1.5)])
          for fs in ("ext4", "tmpfs")],
    ]


def layer_cases(quick):
    kept = Bar("of_depth1", None, 0.95)
    opened = Bar("open_ms", QSDS, 1 / 3, at_most=True)
    bounded = Bar("private_mib", None, 64, at_most=True)
    # A peer takes half a minute for a thousand layers.
    at_1000 = DAEMONS[:2] if quick else DAEMONS
    # Reads over all of such a disk are never warm: shown, without a bar.
    large = [] if quick else [
        deep(10, TIB, [bounded]),
        deep(10, 64 * TIB, [bounded], cluster=2 * MIB),
    ]
    return [
        deep(1, GIB, []),
        deep(10, GIB, [kept]),
        deep(100, GIB, [kept, opened]),
        deep(1000, GIB, [kept, opened, bounded], peers=at_1000),
        *large,
    ]


def stream_cases(quick):
    size = GIB // 4 if quick else 3 * GIB
    busy = 192 * MIB if quick else 3 * GIB
    formats = ("qcow2",) if quick else ("qcow2", "qed")
    felt = [Bar("guest_kept", None, 0.5),
            Bar("p99_over", None, 1, at_most=True)]
    return [
        *[stream("tmpfs", fmt, size,
                 [Bar("mib_s", QSDS, 4), Bar("mib_s", "copy", 0.65)])
          for fmt in formats],
        *[stream("ext4", fmt, size,
                 [Either(Bar("mib_s", QSDS, 1.2), Bar("mib_s", "copy", 0.95))])
          for fmt in formats],
        far_stream([Bar("mib_s", QSDS, 20)]),
        *[busy_stream(fs, busy,
                      [*felt, Bar("stream_kept", None, 0.3)])
          for fs in ("ext4", "tmpfs")],
        *[busy_merge(fs, busy, felt)
          for fs in ("ext4", "tmpfs")],
        *[case(fs, [Bar("shared", None, 0.95)])
          for fs in (("xfs",) if quick else ("xfs", "btrfs"))
          for case in (shared_stream, shared_convert)],
    ]


def all_cases(quick):
    n = 50 if quick else 200
    return [
        *guest_cases("qcow2"),
        *([] if quick else guest_cases("qed")),
        *[small("read 1M in sequence, depth 8", fs, "qcow2",
                [Bar("bytes_per_second", NBDKIT, 0.95),
                 Bar("bytes_per_second", QSDS, 1.2)],
                depth=8, block=MIB, order="sequential")
          for fs in ("ext4", "tmpfs")],
        idle([Bar("private_mib", None, 15, at_most=True)]),
        *layer_cases(quick),
        *stream_cases(quick),
        clones("tmpfs", n, [Bar("clones_s", QSDS, 4),
                            Bar("clones_s", "qemu-img", 10),
                            Bar("kib_each", None, 64, at_most=True)]),
        clones("ext4", n, [], fsync=True),
        *copy_cases(quick),
        shared_log([Bar("of_without", None, 0.97)]),
        dirty_log([Bar("touch_kept", None, 0.8),
                   Bar("steady_kept", None, 0.95)]),
    ]
