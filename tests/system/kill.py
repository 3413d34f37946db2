#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of the daemon under load, again and again.

kill.py SLUICED [SEED [COUNT]]: a client writes sectors into an overlay and
flushes, in every other run with a stream job beside it.  The daemon is killed
when a random number of replies has come, with requests still in flight.  Then
qemu-img's check must find nothing but leaks, and every sector must hold what
it held at the last acknowledged flush, or a write sent later.  Now and then
the next run goes on with the same image.
"""
import os
import random
import sys

from harness import (Daemon, Nbd, QmpError, main, nbd_server, need, run,
                     temporary_folder)

SLUICED = os.path.abspath(sys.argv[1])
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else 100
SIZE, SECTOR, DEPTH = 8 << 20, 512, 8

need("qemu-img")


class Disk:
    """An image, and for each sector the values that it may hold."""

    def __init__(self, at, fmt):
        self.at, self.fmt, self.serial = at, fmt, 0
        self.path = at("disk." + fmt)
        run("qemu-img", "create", "-q", "-f", fmt, "-b", at("template"), "-F",
            "raw", self.path)
        with open(at("template"), "rb") as f:
            data = f.read()
        self.may = [[data[i:i + SECTOR]] for i in range(0, SIZE, SECTOR)]

    def write(self, nbd, rng):
        count = rng.choice([1, 3, 8, 40, 130])
        first = rng.randrange(0, SIZE // SECTOR - count + 1)
        self.serial += 1
        value = self.serial.to_bytes(8, "big") * (SECTOR // 8)
        for s in range(first, first + count):
            self.may[s].append(value)
        return nbd.send(nbd.WRITE, first * SECTOR, data=value * count)

    def judge(self):
        run("qemu-img", "check", "-f", self.fmt, self.path, ok=(0, 3))
        raw = self.at("judge.raw")
        run("qemu-img", "convert", "-f", self.fmt, "-O", "raw", self.path, raw)
        with open(raw, "rb") as f:
            data = f.read()
        if len(data) != SIZE:
            raise AssertionError(f"the disk has {len(data)} bytes")
        for s, values in enumerate(self.may):
            got = data[s * SECTOR:(s + 1) * SECTOR]
            if got not in values:
                raise AssertionError(
                    f"{self.fmt}: sector {s} begins with {got[:8].hex()}, not "
                    f"with one of {[v[:8].hex() for v in values]}")
        # The disk exists now as it was read; older values cannot return.
        self.may = [[data[i:i + SECTOR]] for i in range(0, SIZE, SECTOR)]


def load(daemon, nbd, disk, rng):
    replies_left = rng.randrange(1, 150)
    while True:
        batch = rng.randrange(1, DEPTH + 1)
        for _ in range(batch):
            disk.write(nbd, rng)
        for _ in range(batch):
            if replies_left == 0:
                daemon.kill()
                return
            nbd.reply()
            replies_left -= 1
        if rng.random() < 0.4:
            nbd.send(nbd.FLUSH)
            if replies_left == 0:
                daemon.kill()
                return
            nbd.reply()
            replies_left -= 1
            # Overlapping writes of one batch may land in either order; the
            # disk itself says which one did.
            for s, values in enumerate(disk.may):
                if len(values) > 1:
                    got = nbd.read(s * SECTOR, SECTOR)
                    if got not in values:
                        raise AssertionError(f"sector {s} after a flush")
                    values[:] = [got]


def one(at, disk, rng, stream):
    options = ["--blockdev", f"driver={disk.fmt},node-name=d,file.driver=file,"
               f"file.filename={disk.path}", "--export",
               "type=nbd,id=e,node-name=d,name=d,writable=on"]
    with Daemon(SLUICED, *nbd_server(at("nbd.sock")), *options,
                folder=at("")) as daemon:
        qmp = daemon.qmp()
        with Nbd(at("nbd.sock"), "d") as nbd:
            if stream:
                try:
                    qmp.cmd("block-stream", job_id="j", device="d")
                except QmpError as e:
                    # A stream of an earlier run of this disk was done.
                    if "no backing file" not in e.desc:
                        raise
            load(daemon, nbd, disk, rng)
        daemon.wait()
    disk.judge()


def kills(places):
    disks = {}

    def test(i):
        rng = random.Random(SEED * 1000 + i)
        at = places[i % 20 == 7]
        disk = disks.get(at)
        if disk is None or rng.random() < 0.6:
            fmt = "qed" if rng.random() < 0.3 else "qcow2"
            disk = Disk(at, fmt)
        disks[at] = None  # a disk that failed is not used again
        one(at, disk, rng, i % 2 == 1)
        disks[at] = disk

    return [(f"kill {i}", lambda i=i: test(i)) for i in range(COUNT)]


if __name__ == "__main__":
    with temporary_folder(memory=True) as memory, temporary_folder() as slow:
        at = [lambda name, f=f: os.path.join(f, name) for f in (memory, slow)]
        for place in at:
            with open(place("template"), "wb") as f:
                f.write(random.Random(SEED).randbytes(SIZE))
        main(kills(at))
