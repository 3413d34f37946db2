#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of the daemon under load, again and again.

kill.py SLUICED [SEED [COUNT]]: a client writes sectors into an overlay and
flushes, in every other run with a stream job beside it.  The daemon is killed
at a random time, uniform over what such a run took when it was not killed, so
in whatever it is doing: connecting, writing, flushing, reading.  Then
qemu-img's check must find nothing but leaks, and every sector must hold what
it held at the last acknowledged flush, or a write sent later.  Now and then
the next run goes on with the same image.
"""
import random
import sys
import threading
import time

from disk_harness import Daemon, Folder, Nbd, Qmp, QmpError, run, tap

SLUICED = sys.argv[1]
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else 100
SIZE, SECTOR, DEPTH, ROUNDS = 8 << 20, 512, 8, 30
NEVER_S = 3600


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
        self.open = set()  # sectors that may hold more than one value

    def write(self, nbd, rng):
        count = rng.choice([1, 3, 8, 40, 130])
        first = rng.randrange(0, SIZE // SECTOR - count + 1)
        self.serial += 1
        value = self.serial.to_bytes(8, "big") * (SECTOR // 8)
        for s in range(first, first + count):
            self.may[s].append(value)
        self.open.update(range(first, first + count))
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
        self.open = set()


def learn(nbd, disk):
    """Asks the disk what it holds, after a flush.

    Overlapping writes of one batch may land in either order.
    """
    open_sectors = sorted(disk.open)
    while open_sectors:
        first = last = open_sectors[0]
        for s in open_sectors:
            if s - last > 64 or s - first >= 4096:
                break
            last = s
        data = nbd.read(first * SECTOR, (last + 1 - first) * SECTOR)
        for s in range(first, last + 1):
            got = data[(s - first) * SECTOR:][:SECTOR]
            if got not in disk.may[s]:
                raise AssertionError(
                    f"{disk.fmt}: after a flush, sector {s} begins with "
                    f"{got[:8].hex()}, not with one of "
                    f"{[v[:8].hex() for v in disk.may[s]]}")
            disk.may[s] = [got]
        disk.open.difference_update(range(first, last + 1))
        open_sectors = [s for s in open_sectors if s > last]


def load(nbd, disk, rng):
    for _ in range(ROUNDS):
        batch = rng.randrange(1, DEPTH + 1)
        for _ in range(batch):
            disk.write(nbd, rng)
        for _ in range(batch):
            nbd.reply()
        if rng.random() < 0.4:
            nbd.send(nbd.FLUSH)
            nbd.reply()
            learn(nbd, disk)


def start_stream(daemon):
    with Qmp(daemon.qmp_path) as qmp:
        try:
            qmp.call("block-stream", job_id="j", device="d")
        except QmpError as e:
            # A stream of an earlier run of this disk was done.
            if "no backing file" not in e.desc:
                raise


def one(at, disk, rng, stream, kill_after):
    """Kills after a time, at once when the load is over; returns its span."""
    options = ["--blockdev", f"driver={disk.fmt},node-name=d,file.driver=file,"
               f"file.filename={disk.path}", "--export",
               "type=nbd,id=e,node-name=d,name=d,writable=on"]
    killed = threading.Event()

    def kill():
        killed.set()
        daemon.kill()

    with Daemon(SLUICED, at, options) as daemon:
        start = time.monotonic()
        timer = threading.Timer(kill_after, kill)
        timer.start()
        try:
            with Nbd(daemon.nbd_path, "d") as nbd:
                if stream:
                    start_stream(daemon)
                load(nbd, disk, rng)
        except OSError:
            # What a client sees of a daemon that is gone; nothing before.
            if not killed.is_set():
                raise
        finally:
            span = time.monotonic() - start
            timer.cancel()
            daemon.kill()
            timer.join()
        daemon.wait()
    disk.judge()
    return span


def main():
    with Folder() as memory, Folder(memory=False) as slow:
        for at in (memory, slow):
            rng = random.Random(SEED)
            with open(at("template"), "wb") as f:
                f.write(rng.randbytes(SIZE))
        disks, spans = {}, {}

        def test(i):
            rng = random.Random(SEED * 1000 + i)
            at = slow if i % 20 == 7 else memory
            stream = i % 2 == 1
            if (at, stream) not in spans:
                # How long such a run takes: one to the end.
                spans[at, stream] = one(at, Disk(at, "qcow2"), rng, stream,
                                        NEVER_S)
                disks[at] = None  # its file was replaced
            disk = disks.get(at)
            if disk is None or rng.random() < 0.6:
                fmt = "qed" if rng.random() < 0.3 else "qcow2"
                disk = Disk(at, fmt)
            disks[at] = None  # a disk that failed is not used again
            one(at, disk, rng, stream, rng.uniform(0, spans[at, stream]))
            disks[at] = disk

        return tap([(f"kill {i}", lambda i=i: test(i)) for i in range(COUNT)])


sys.exit(main())
