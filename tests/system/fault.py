#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Error policies of a job in a real daemon, with the driver fault.

fault.py SLUICED: block-stream from a base whose reads, or into a top whose
writes, fail once or always; what the events say, whether the job pauses, and
what the disk reads as afterwards.
"""
import os
import struct
import sys

from harness import Daemon, Nbd, QmpError, main, nbd_server, need, run

SLUICED = os.path.abspath(sys.argv[1])
SIZE = 1 << 20

need("qemu-img")


def rule(**members):
    return {k.replace("_", "-"): v for k, v in members.items()}


def image(name, fault, **more):
    file = {"driver": "file", "filename": name}
    if fault:
        file = {"driver": "fault", "file": file, "inject-error": fault}
    return {"driver": "qcow2" if name == "top" else "raw", "file": file, **more}


def stream(on_base=(), on_top=(), act=None, **args):
    """Streams top; @act gets QMP; then the disk must read as the base did."""
    with open("base", "wb") as f:
        f.write(bytes(range(1, 251)) * (SIZE // 250 + 1))
        f.truncate(SIZE)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw",
        "top")
    qmp = Daemon(SLUICED, *nbd_server()).qmp()
    qmp.cmd("blockdev-add", node_name="t",
            **image("top", list(on_top), backing=image("base", list(on_base))))
    qmp.cmd("block-export-add", type="nbd", id="e", node_name="t", name="t")
    qmp.cmd("block-stream", job_id="j", device="t", **args)
    act(qmp)
    with Nbd("nbd.sock", "t") as nbd, open("base", "rb") as f:
        assert nbd.read(0, SIZE) == f.read(), "it does not read as its base"


def completed(qmp):
    return qmp.wait_event("BLOCK_JOB_COMPLETED")["data"].get("error")


def error(qmp):
    return qmp.wait_event("BLOCK_JOB_ERROR")["data"]


def expect(got, want):
    assert got == want, f"{got!r}, not {want!r}"


def reported(qmp):
    expect(error(qmp)["action"], "report")
    expect(bool(completed(qmp)), True)


def stopped_once(qmp):
    e = error(qmp)
    expect((e["action"], e["operation"]), ("stop", "read"))
    qmp.wait_event("JOB_STATUS_CHANGE", status="paused")
    qmp.cmd("job-resume", id="j")
    expect(completed(qmp), None)


def ignored(qmp):
    expect(error(qmp)["action"], "ignore")
    # It copied what it could, and says so at the end.
    expect(bool(completed(qmp)), True)


def full(qmp):
    e = error(qmp)
    expect((e["action"], e["operation"]), ("stop", "write"))
    job, = qmp.cmd("query-block-jobs")
    expect(job["io-status"], "nospace")
    qmp.cmd("job-resume", id="j")
    expect(completed(qmp), None)


def no_header_names_it():
    """Formats only: a header is not the operator."""
    run("qemu-img", "create", "-q", "-f", "raw", "base", "1M")
    qmp = Daemon(SLUICED).qmp()
    for name in (b"fault", b"crash", b"nbd"):
        run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "base",
            "-F", "raw", "top", "1M")
        with open("top", "r+b") as f:
            extension = f.read(4096).index(b"\xe2\x79\x2a\xca")
            f.seek(extension + 4)  # its length, then padded to 8 bytes
            f.write(struct.pack(">I8s", len(name), name))
        try:
            qmp.cmd("blockdev-add", driver="qcow2", node_name="t",
                    file={"driver": "file", "filename": "top"})
        except QmpError as e:
            expect("no image format" in str(e), True)
        else:
            raise AssertionError(f"a header chose the driver {name}")


READ_ONCE = rule(iotype="read", offset=SIZE // 2, length=4096, count=1)
READ_BAD = rule(iotype="read", offset=SIZE // 2, length=4096)

main([
    ("a read error is reported and ends the job",
     lambda: stream([READ_ONCE], act=reported)),
    ("a read error stops the job, which resumes",
     lambda: stream([READ_ONCE], act=stopped_once, on_error="stop")),
    ("a read error is ignored until the end",
     lambda: stream([READ_ONCE], act=ignored, on_error="ignore")),
    ("a full target pauses the job",
     lambda: stream(on_top=[rule(iotype="write", offset=400000, length=65536,
                                 count=1, error=28)],
                    act=full, on_error="enospc")),
    ("a header cannot name a filter", no_header_names_it)])
