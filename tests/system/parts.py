#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Disks that are a part of a file (a raw node with an offset and a size): what
they share with the rest of the file is left alone, and no header names them.

parts.py SLUICED SLUICE
"""
import os
import sys
import time

from harness import Daemon, main, nbd_server, need, refused, run

SLUICED = os.path.abspath(sys.argv[1])
MIB = 1 << 20
PART = 4 * MIB

need("qemu-img", "qemu-io")


def part(name, offset):
    return {"driver": "raw", "node-name": name, "offset": offset, "size": PART,
            "file": {"driver": "file", "filename": "disk"}}


def add_part(q, *place):
    q.cmd("blockdev-add", **{k.replace("-", "_"): v
                             for k, v in part(*place).items()})


def image(name, **more):
    return {"driver": "qcow2", "node_name": name, **more,
            "file": {"driver": "file", "filename": name}}


def make():
    with open("disk", "wb") as f:
        for letter in b"ABC":
            f.write(bytes([letter]) * PART)
    run("qemu-img", "create", "-q", "-f", "qcow2", "target", str(PART))


def only_whole_files_are_deleted():
    """By itself, and as the file of an image."""
    make()
    run("qemu-img", "create", "-q", "-f", "qcow2", "inner", "1M")
    with open("inner", "rb") as i, open("disk", "r+b") as f:
        f.seek(PART)
        f.write(i.read())
    with Daemon(SLUICED) as d:
        q = d.qmp()
        q.cmd("blockdev-add", driver="qcow2", node_name="i",
              file=part("middle", PART))
        q.cmd("blockdev-add", **image("target", backing=None))
        refused(q, "no regular file of its own", "block-copy", job_id="j",
                device="i", target="target", delete_source=True)
        d.stop()
    with Daemon(SLUICED) as d:
        q = d.qmp()
        add_part(q, "s", 0)
        q.cmd("blockdev-add", **image("target", backing=None))
        refused(q, "no regular file of its own", "block-copy", job_id="j",
                device="s", target="target", delete_source=True)
        q.cmd("block-copy", job_id="j", device="s", target="target")
        end = q.wait_event("BLOCK_JOB_COMPLETED")
        assert "error" not in end["data"], end
        d.stop()
    assert os.path.getsize("disk") == 3 * PART
    run("qemu-io", "-f", "qcow2", "-c", f"read -P 65 0 {PART}", "target")


def no_header_names_a_part():
    """A program that reads it would begin elsewhere."""
    make()
    for name, below in ("middle", "target"), ("top", "middle"):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F",
            "qcow2", name)
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        add_part(q, "s", PART)
        q.cmd("blockdev-add", **image("middle", backing="s"))
        q.cmd("blockdev-add", **image("top", backing="middle"))
        q.cmd("blockdev-add", **image("target", backing=None))
        q.cmd("block-export-add", type="nbd", id="e", node_name="top",
              writable=True)
        text = "no header of an image can name that"
        refused(q, text, "block-stream", job_id="j", device="top",
                base_node="s")
        refused(q, text, "block-commit", job_id="j", device="top",
                top_node="middle", base_node="s")
        refused(q, text, "block-merge", job_id="j", device="middle",
                into="snapshot")
        for mode in "post-copy", "hybrid":
            refused(q, text, "block-copy", job_id="j", device="s",
                    target="target", mode=mode)
        q.cmd("block-stream", job_id="j", device="top", base_node="s",
              backing_file="elsewhere")
        end = q.wait_event("BLOCK_JOB_COMPLETED")
        assert "error" not in end["data"], end
        d.stop()


def a_job_goes_on_with_no_other_part():
    make()
    with Daemon(SLUICED) as d:
        q = d.qmp()
        add_part(q, "s", 0)
        q.cmd("blockdev-add", **image("target", backing=None))
        q.cmd("block-copy", job_id="j", device="s", target="target",
              speed=MIB)
        time.sleep(0.3)
        d.kill()
        d.wait()
    with Daemon(SLUICED) as d:
        q = d.qmp()
        add_part(q, "other", PART)
        assert q.cmd("query-jobs") == []
        assert len(q.cmd("query-named-block-nodes", flat=True)) == 2
        d.stop()


if __name__ == "__main__":
    main([only_whole_files_are_deleted, no_header_names_a_part,
          a_job_goes_on_with_no_other_part])
