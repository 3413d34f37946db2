#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Transfers share blocks where the file system can.

reflink.py SLUICED SLUICE: on XFS and btrfs, each on a loop device, streams a raw base
into a qcow2 overlay in which a guest's clusters lie in the way, and converts
it.  qemu-img judges the contents; the report says how many bytes were shared
and how many were copied, which on these file systems is only what the overlay
had in part.
"""
import json
import os
import sys

from harness import Daemon, defer, main, need, run

SLUICED, SLUICE = (os.path.abspath(p) for p in sys.argv[1:3])
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


def merge(kind, fmt, into):
    """No byte of whole clusters is copied, in either direction."""
    at = mounted(kind)
    base, top, model = (f"{at}/{n}" for n in ("base", "top", "model"))
    run("qemu-img", "create", "-q", "-f", fmt, base, str(SIZE))
    run("qemu-io", "-f", fmt, "-c", "write -P 1 0 64M", base)
    run("qemu-img", "create", "-q", "-f", fmt, "-b", base, "-F", fmt, top)
    run("qemu-io", "-f", fmt, "-c", "write -P 2 8M 16M", "-c",
        "write -P 3 40M 1M", top)
    run("qemu-img", "convert", "-f", fmt, "-O", "raw", top, model)
    with Daemon(SLUICED, "--blockdev", f"driver={fmt},node-name=top,"
                f"file.driver=file,file.filename={top}") as d:
        q = d.qmp()
        q.cmd("block-merge", job_id="j", device="top", into=into,
              auto_finalize=False)
        q.wait_event("BLOCK_JOB_PENDING")
        report, = q.cmd("query-transfers")
        q.cmd("job-finalize", id="j")
        end = q.wait_event("BLOCK_JOB_COMPLETED")
        assert "error" not in end["data"], end
        d.stop()
    assert report["bytes-moved"] == 0, report
    moved = 17 * MIB if into == "snapshot" else SIZE - 17 * MIB
    assert report["bytes-cloned"] == moved, report
    survivor = base if into == "snapshot" else top
    run("qemu-img", "check", "-q", "-f", fmt, survivor, ok=(0, 3))
    run("qemu-img", "compare", "-q", "-f", fmt, "-F", "raw", survivor, model)


main([(f"streaming and converting on {kind} share blocks",
      lambda kind=kind: case(kind)) for kind in ("xfs", "btrfs")] +
     [(f"a merge of {fmt} into the {into} on {kind} shares blocks",
       lambda kind=kind, fmt=fmt, into=into: merge(kind, fmt, into))
      for kind in ("xfs", "btrfs") for fmt in ("qcow2", "qed")
      for into in ("snapshot", "overlay")])
