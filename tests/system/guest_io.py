#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What the operator sees of a guest's I/O, and sets for it.

guest_io.py SLUICED: BLOCK_IO_ERROR for failing requests, over an NBD server
that fails them; detect-zeroes, judged by what qemu-img sees in the image.
"""
import json
import shutil
import subprocess
import sys

from disk_harness import Daemon, Folder, Nbd, Qmp, QmpError, run, tap

SLUICED = sys.argv[1]
SIZE, CLUSTER = 4 << 20, 65536


def is_io_error(event):
    return event["event"] == "BLOCK_IO_ERROR"


def fail(nbd, kind):
    nbd.send(kind, 0, 512, b"" if kind == nbd.READ else b"x" * 512)
    try:
        nbd.reply()
    except AssertionError:
        return
    raise AssertionError("the request did not fail")


def io_errors():
    with Folder() as at:
        path = at("bad.sock")
        server = subprocess.Popen(
            ["nbdkit", "-f", "-U", path, "-P", at("bad.pid"), "--filter=error",
             "memory", str(SIZE), "error-pread=EIO", "error-pread-rate=100%",
             "error-pwrite=ENOSPC", "error-pwrite-rate=100%"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        try:
            with Daemon(SLUICED, at, []) as daemon, \
                    Qmp(daemon.qmp_path) as qmp:
                qmp.call("blockdev-add", driver="nbd", node_name="bad",
                         open_timeout=30,
                         server={"type": "unix", "path": path})
                for name in "rw":
                    qmp.call("block-export-add", type="nbd", id=name, name=name,
                             node_name="bad", writable=True)
                tell(qmp, daemon)
        finally:
            server.kill()
            server.wait()


def tell(qmp, daemon):
    with Nbd(daemon.nbd_path, "r") as r, Nbd(daemon.nbd_path, "w") as w:
        fail(r, r.READ)
        event = qmp.event(is_io_error)["data"]
        expect(event, {"qom-path": "", "device": "", "node-name": "bad",
                       "operation": "read", "action": "report",
                       "nospace": False, "reason": "Input/output error"})
        # Another disk's events are none of the first one's limit.
        fail(w, w.WRITE)
        event = qmp.event(is_io_error)["data"]
        expect((event["operation"], event["nospace"]), ("write", True))
        # Of many in a second the last one is told, when it is over.
        for _ in range(50):
            fail(r, r.READ)
        fail(r, r.WRITE)
        event = qmp.event(is_io_error)["data"]
        expect(event["operation"], "write")
    qmp.call("block-export-del", id="r", mode="hard")
    qmp.event(lambda e: e["event"] == "BLOCK_EXPORT_DELETED")
    expect([e for e in qmp.events if is_io_error(e)], [])


def expect(got, wanted):
    if got != wanted:
        raise AssertionError(f"{got}, not {wanted}")


def zeroes(mode, data_clusters):
    with Folder() as at:
        run("qemu-img", "create", "-q", "-f", "qcow2", at("disk"), str(SIZE))
        options = ["--blockdev", f"qcow2,node-name=d,detect-zeroes={mode},"
                   f"discard=unmap,file.driver=file,file.filename={at('disk')}",
                   "--export", "nbd,id=e,node-name=d,name=d,writable=on"]
        with Daemon(SLUICED, at, options) as daemon, \
                Qmp(daemon.qmp_path) as qmp, Nbd(daemon.nbd_path, "d") as nbd:
            mixed = b"\1" + bytes(CLUSTER - 1)
            nbd.write(0, b"a" * 2 * CLUSTER)
            nbd.write(CLUSTER, bytes(CLUSTER))      # over data
            nbd.write(2 * CLUSTER, bytes(CLUSTER))  # over nothing
            nbd.write(3 * CLUSTER, mixed)           # not only zeroes
            nbd.flush()
            expect(nbd.read(CLUSTER, 3 * CLUSTER), bytes(2 * CLUSTER) + mixed)
            node = qmp.call("query-named-block-nodes")
            expect([n["detect_zeroes"] for n in node
                    if n["node-name"] == "d"], [mode])
            qmp.call("quit")
            daemon.wait()
        run("qemu-img", "check", at("disk"))
        p = run("qemu-img", "map", "--output=json", at("disk"))
        found = set()
        for e in json.loads(p.stdout):
            if e["data"]:
                found.update(range(e["start"] // CLUSTER,
                                   (e["start"] + e["length"]) // CLUSTER))
        expect(sorted(found), data_clusters)


def unmap_alone():
    with Folder() as at, Daemon(SLUICED, at) as daemon, \
            Qmp(daemon.qmp_path) as qmp:
        try:
            qmp.call("blockdev-add", driver="null-co", node_name="n",
                     detect_zeroes="unmap")
        except QmpError as e:
            expect(e.desc, "setting detect-zeroes to unmap is not allowed "
                           "without setting discard operation to unmap")
            return
        raise AssertionError("it was accepted")


tests = [("detect-zeroes=off writes zeroes", lambda: zeroes("off",
                                                            [0, 1, 2, 3])),
         ("detect-zeroes=on writes none", lambda: zeroes("on", [0, 3])),
         ("detect-zeroes=unmap writes none", lambda: zeroes("unmap", [0, 3])),
         ("detect-zeroes=unmap needs discard=unmap", unmap_alone)]
if shutil.which("nbdkit"):
    tests.append(("a guest's failing requests are told, once a second",
                  io_errors))
sys.exit(tap(tests))
