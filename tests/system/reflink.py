#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Transfers share blocks where the file system can.

reflink.py SLUICE: on XFS and btrfs, each on a loop device, streams a raw base
into a qcow2 overlay in which a guest's clusters lie in the way, and converts
it.  qemu-img judges the contents; the report says how many bytes were shared
and how many were copied, which on these file systems is only what the overlay
had in part.
"""
import json
import os
import sys

from harness import defer, main, need, run

SLUICE = os.path.abspath(sys.argv[1])
MIB = 1 << 20
SIZE = 64 * MIB


need("mkfs.xfs", "mkfs.btrfs", "qemu-img")


def mounted(kind):
    """A file system in a file; unmounted when the test ends."""
    with open("image", "wb") as f:
        f.truncate(512 * MIB)
    run(f"mkfs.{kind}", "-q", "image")
    os.mkdir("mnt")
    run("mount", "-o", "loop", "image", "mnt")
    defer(run, "umount", "-l", os.path.abspath("mnt"))
    return os.path.abspath("mnt")


def result(*argv):
    out = run(SLUICE, "--json", *argv)[1]
    return next(r for r in map(json.loads, out.splitlines())
                if r.get("type") == "result")


def case(kind):
    at = mounted(kind)
    base, overlay = at + "/base.raw", at + "/overlay.qcow2"
    with open(base, "wb") as f:
        f.write(os.urandom(SIZE))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw",
        overlay)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 5 1M 64k", "-c",
        "write -P 6 5000k 3k", overlay)
    model = at + "/model.raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", overlay, model)
    r = result("stream", overlay, "-f", "qcow2")
    assert r["bytes-moved"] == 0, r
    assert r["bytes-cloned"] == SIZE - 2 * 65536, r
    run("qemu-img", "check", "-q", overlay)
    run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", overlay,
        model)
    copied = at + "/copied.qcow2"
    r = result("convert", "-f", "raw", "-O", "qcow2", base, copied)
    assert r["bytes-moved"] == 0 and r["bytes-cloned"] == SIZE, r
    run("qemu-img", "check", "-q", copied)
    run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", copied,
        base)
    # Blocks that are shared must not be changed through either file.
    run("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 64M", copied)
    run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", overlay,
        model)


main([(f"streaming and converting on {kind} share blocks",
      lambda kind=kind: case(kind)) for kind in ("xfs", "btrfs")])
