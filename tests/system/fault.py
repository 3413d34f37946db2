#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Error policies of a job in a real daemon, with the driver fault.

fault.py SLUICED: block-stream from a base whose reads, or into a top whose
writes, fail once or always; what the events say, whether the job pauses, and
what the disk reads as afterwards.
"""
import shutil
import struct
import sys

from disk_harness import Daemon, Folder, Nbd, Qmp, QmpError, run, tap

SLUICED = sys.argv[1]
SIZE = 1 << 20

if not shutil.which("qemu-img"):
    print("1..0 # SKIP qemu-img is missing")
    sys.exit(77)


def rule(**members):
    return {k.replace("_", "-"): v for k, v in members.items()}


def image(at, name, fault, **more):
    file = {"driver": "file", "filename": at(name)}
    if fault:
        file = {"driver": "fault", "file": file, "inject-error": fault}
    return {"driver": "qcow2" if name == "top" else "raw", "file": file, **more}


def stream(on_base=(), on_top=(), act=None, **args):
    """Streams top; @act gets QMP; then the disk must read as the base did."""
    with Folder() as at:
        with open(at("base"), "wb") as f:
            f.write(bytes(range(1, 251)) * (SIZE // 250 + 1))
            f.truncate(SIZE)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", at("base"), "-F",
            "raw", at("top"))
        with Daemon(SLUICED, at) as daemon, Qmp(daemon.qmp_path) as qmp:
            qmp.call("blockdev-add", node_name="t",
                     **{k.replace("-", "_"): v for k, v in image(
                         at, "top", list(on_top),
                         backing=image(at, "base", list(on_base))).items()})
            qmp.call("block-export-add", type="nbd", id="e", node_name="t",
                     name="t")
            qmp.call("block-stream", job_id="j", device="t", **args)
            act(qmp)
            with Nbd(daemon.nbd_path, "t") as nbd, open(at("base"), "rb") as f:
                if nbd.read(0, SIZE) != f.read():
                    raise AssertionError("the disk does not read as its base")


def completed(qmp):
    e = qmp.event(lambda e: e["event"] == "BLOCK_JOB_COMPLETED")
    return e["data"].get("error")


def error(qmp):
    return qmp.event(lambda e: e["event"] == "BLOCK_JOB_ERROR")["data"]


def expect(got, want):
    if got != want:
        raise AssertionError(f"{got!r}, not {want!r}")


def reported(qmp):
    text = completed(qmp)
    expect(error(qmp)["action"], "report")
    expect(bool(text), True)


def stopped_once(qmp):
    e = error(qmp)
    expect((e["action"], e["operation"]), ("stop", "read"))
    qmp.event(lambda e: e["event"] == "JOB_STATUS_CHANGE"
              and e["data"]["status"] == "paused")
    qmp.call("job-resume", id="j")
    expect(completed(qmp), None)


def ignored(qmp):
    text = completed(qmp)
    expect(error(qmp)["action"], "ignore")
    expect(bool(text), True)  # it copied what it could, and says so at the end


def full(qmp):
    e = error(qmp)
    expect((e["action"], e["operation"]), ("stop", "write"))
    job, = qmp.call("query-block-jobs")
    expect(job["io-status"], "nospace")
    qmp.call("job-resume", id="j")
    expect(completed(qmp), None)


def no_header_names_it():
    """Formats only: a header is not the operator."""
    for name in (b"fault", b"crash", b"nbd"):
        with Folder() as at:
            run("qemu-img", "create", "-q", "-f", "raw", at("base"), "1M")
            run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b",
                at("base"), "-F", "raw", at("top"), "1M")
            with open(at("top"), "r+b") as f:
                extension = f.read(4096).index(b"\xe2\x79\x2a\xca")
                f.seek(extension + 4)  # its length, then padded to 8 bytes
                f.write(struct.pack(">I8s", len(name), name))
            with Daemon(SLUICED, at) as daemon, Qmp(daemon.qmp_path) as qmp:
                try:
                    qmp.call("blockdev-add", driver="qcow2", node_name="t",
                             file={"driver": "file", "filename": at("top")})
                except QmpError as e:
                    expect("no format" in e.desc, True)
                else:
                    raise AssertionError(f"a header chose the driver {name}")


READ_ONCE = rule(iotype="read", offset=SIZE // 2, length=4096, count=1)
READ_BAD = rule(iotype="read", offset=SIZE // 2, length=4096)

sys.exit(tap([
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
    ("a header cannot name a filter", no_header_names_it)]))
