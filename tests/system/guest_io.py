#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What the operator sees of a guest's I/O, and sets for it.

guest_io.py SLUICED: BLOCK_IO_ERROR for failing requests, over an NBD server
that fails them; detect-zeroes, judged by what qemu-img sees in the image.
"""
import json
import os
import sys

from harness import (Daemon, Nbd, NbdError, Process, QmpError, main,
                     nbd_server, need, run)

SLUICED = os.path.abspath(sys.argv[1])
SIZE, CLUSTER = 4 << 20, 65536

need("nbdkit", "qemu-img")


def fail(nbd, kind):
    try:
        nbd.do(kind, 0, 512, b"" if kind == nbd.READ else b"x" * 512)
    except NbdError:
        return
    raise AssertionError("the request did not fail")


def expect(got, wanted):
    assert got == wanted, f"{got}, not {wanted}"


def failing_requests_are_told():
    Process("nbdkit", "-f", "-U", "bad.sock", "--filter=error", "memory",
            str(SIZE), "error-pread=EIO", "error-pread-rate=100%",
            "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
    qmp = Daemon(SLUICED, *nbd_server()).qmp()
    qmp.cmd("blockdev-add", driver="nbd", node_name="bad", open_timeout=30,
            server={"type": "unix", "path": "bad.sock"})
    for name in "rw":
        qmp.cmd("block-export-add", type="nbd", id=name, name=name,
                node_name="bad", writable=True)
    r, w = Nbd("nbd.sock", "r"), Nbd("nbd.sock", "w")
    fail(r, r.READ)
    expect(qmp.wait_event("BLOCK_IO_ERROR")["data"],
           {"qom-path": "", "device": "", "node-name": "bad",
            "operation": "read", "action": "report", "nospace": False,
            "reason": "Input/output error"})
    # Another disk's events are none of the first one's limit.
    fail(w, w.WRITE)
    event = qmp.wait_event("BLOCK_IO_ERROR")["data"]
    expect((event["operation"], event["nospace"]), ("write", True))
    # Of many in a second the last one is told, when it is over.
    for _ in range(50):
        fail(r, r.READ)
    fail(r, r.WRITE)
    expect(qmp.wait_event("BLOCK_IO_ERROR")["data"]["operation"], "write")
    qmp.cmd("block-export-del", id="r", mode="hard")
    while not any(e["event"] == "BLOCK_EXPORT_DELETED" for e in qmp.events):
        qmp.events.append(qmp.receive())
    expect([e for e in qmp.events if e["event"] == "BLOCK_IO_ERROR"], [])


def zeroes(mode, data_clusters):
    run("qemu-img", "create", "-q", "-f", "qcow2", "disk", str(SIZE))
    daemon = Daemon(
        SLUICED, *nbd_server(),
        "--blockdev", f"qcow2,node-name=d,detect-zeroes={mode},discard=unmap,"
        "file.driver=file,file.filename=disk",
        "--export", "nbd,id=e,node-name=d,name=d,writable=on")
    qmp = daemon.qmp()
    nbd = Nbd("nbd.sock", "d")
    mixed = b"\1" + bytes(CLUSTER - 1)
    nbd.write(0, b"a" * 2 * CLUSTER)
    nbd.write(CLUSTER, bytes(CLUSTER))      # over data
    nbd.write(2 * CLUSTER, bytes(CLUSTER))  # over nothing
    nbd.write(3 * CLUSTER, mixed)           # not only zeroes
    nbd.flush()
    expect(nbd.read(CLUSTER, 3 * CLUSTER), bytes(2 * CLUSTER) + mixed)
    expect([n["detect_zeroes"] for n in qmp.cmd("query-named-block-nodes")
            if n["node-name"] == "d"], [mode])
    expect(daemon.stop(), 0)
    run("qemu-img", "check", "disk")
    found = set()
    for e in json.loads(run("qemu-img", "map", "--output=json", "disk")[1]):
        if e["data"]:
            found.update(range(e["start"] // CLUSTER,
                               (e["start"] + e["length"]) // CLUSTER))
    expect(sorted(found), data_clusters)


def unmap_alone():
    try:
        Daemon(SLUICED).qmp().cmd("blockdev-add", driver="null-co",
                                  node_name="n", detect_zeroes="unmap")
    except QmpError as e:
        assert "setting detect-zeroes to unmap is not allowed without " \
               "setting discard operation to unmap" in str(e), e
        return
    raise AssertionError("it was accepted")


if __name__ == "__main__":
    main([failing_requests_are_told,
          ("detect-zeroes=off writes zeroes",
           lambda: zeroes("off", [0, 1, 2, 3])),
          ("detect-zeroes=on writes none", lambda: zeroes("on", [0, 3])),
          ("detect-zeroes=unmap writes none", lambda: zeroes("unmap", [0, 3])),
          ("detect-zeroes=unmap needs discard=unmap", unmap_alone)])
