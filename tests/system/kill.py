#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of the daemon under load, again and again.

kill.py SLUICED [SEED [COUNT]]: a client writes sectors into an overlay and
flushes, in every other run with a stream job beside it.  The daemon is killed
at a random time, uniform over about the first 150 replies, whatever it and the
client do at that moment.

Then qemu-img, which sees the files alone, as they were had power failed, must
find nothing but leaks, and in every sector what it held at the last
acknowledged flush, or a write sent later.  And once Sluice has opened the image
again, to read or to write, every write that was acknowledged is there, flushed
or not.  Now and then the next run goes on with the same image.
"""
import os
import random
import signal
import sys
import threading
import time

from harness import Daemon, Nbd, QmpError, folder, main, need, run

SLUICED = os.path.abspath(sys.argv[1])
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else 100
SIZE, SECTOR, DEPTH = 8 << 20, 512, 8
SPAN_REPLIES = 150

need("qemu-img")


class Place:
    """A folder with a template; how fast replies come from there."""

    def __init__(self, memory):
        self.path = folder(memory)
        self.disk = None  # to go on with
        self.replies, self.seconds = 1, 0.001
        with open(self.at("template"), "wb") as f:
            f.write(random.Random(SEED).randbytes(SIZE))

    def at(self, name):
        return os.path.join(self.path, name)

    def span(self):
        return SPAN_REPLIES * self.seconds / self.replies


class Disk:
    """An image, and for each sector the values that it may hold: by the file
    alone, and when what was acknowledged is there."""

    def __init__(self, at, fmt):
        self.at, self.fmt, self.serial = at, fmt, 0
        self.path = at("disk." + fmt)
        run("qemu-img", "create", "-q", "-f", fmt, "-b", at("template"), "-F",
            "raw", self.path)
        with open(at("template"), "rb") as f:
            data = f.read()
        self.is_now(data)

    def is_now(self, data):
        """It was read so: older values cannot return."""
        self.may = [[data[i:i + SECTOR]] for i in range(0, SIZE, SECTOR)]
        self.acknowledged = [list(v) for v in self.may]
        self.batch = {}  # sector: how many values were sent

    def write(self, nbd, rng):
        count = rng.choice([1, 3, 8, 40, 130])
        first = rng.randrange(0, SIZE // SECTOR - count + 1)
        self.serial += 1
        value = self.serial.to_bytes(8, "big") * (SECTOR // 8)
        for s in range(first, first + count):
            self.may[s].append(value)
            self.acknowledged[s].append(value)
            self.batch[s] = self.batch.get(s, 0) + 1
        return nbd.send(nbd.WRITE, first * SECTOR, data=value * count)

    def replied(self):
        """All of the batch; those of one sector may land in either order."""
        for s, n in self.batch.items():
            del self.acknowledged[s][:-n]
        self.batch = {}

    def flushed(self, nbd):
        """All writes were acknowledged before a flush that was, too."""
        doubtful = []
        for s, values in enumerate(self.may):
            if len(values) > 1:
                del values[0]
            if len(values) > 1:
                doubtful.append((s, values))
        # Overlapping writes of one batch may land in either order; the disk
        # itself says which one did.
        for s, values in doubtful:
            got = nbd.read(s * SECTOR, SECTOR)
            if got not in values:
                raise AssertionError(f"sector {s} after a flush")
            values[:] = [got]

    def judge_by(self, allowed, what):
        run("qemu-img", "check", "-f", self.fmt, self.path, ok=(0, 3))
        raw = self.at("judge.raw")
        run("qemu-img", "convert", "-f", self.fmt, "-O", "raw", self.path, raw)
        with open(raw, "rb") as f:
            data = f.read()
        if len(data) != SIZE:
            raise AssertionError(f"the disk has {len(data)} bytes")
        for s, values in enumerate(allowed):
            got = data[s * SECTOR:(s + 1) * SECTOR]
            if got not in values:
                raise AssertionError(
                    f"{what}: {self.fmt}: sector {s} begins with "
                    f"{got[:8].hex()}, not with one of "
                    f"{[v[:8].hex() for v in values]}")
        return data

    def open_again(self, read_only):
        """Whoever comes next writes what the one that was killed could not."""
        with Daemon(SLUICED, "--blockdev", f"driver={self.fmt},node-name=d,"
                    f"read-only={read_only},file.driver=file,"
                    f"file.filename={self.path}") as daemon:
            daemon.qmp().cmd("quit")
            if daemon.wait():
                raise AssertionError(daemon.errors())

    def judge(self, rng):
        self.judge_by(self.may, "what was flushed")
        self.open_again(rng.choice(["on", "off"]))
        self.is_now(self.judge_by(self.acknowledged, "what was acknowledged"))


def load(nbd, disk, rng, place):
    """Writes and flushes until the daemon is gone."""
    while True:
        batch = rng.randrange(1, DEPTH + 1)
        for _ in range(batch):
            disk.write(nbd, rng)
        for _ in range(batch):
            nbd.reply()
        disk.replied()
        place.replies += batch
        if rng.random() < 0.4:
            nbd.flush()
            place.replies += 1
            disk.flushed(nbd)


def use(daemon, nbd, place, disk, rng, stream):
    begin = time.monotonic()
    killer = threading.Timer(rng.random() * place.span(), daemon.kill)
    killer.start()
    try:
        if stream:
            try:
                daemon.clients[0].cmd("block-stream", job_id="j", device="d")
            except QmpError as e:
                # A stream of an earlier run of this disk was done.
                if "no backing file" not in e.desc:
                    raise
        load(nbd, disk, rng, place)
    except (ConnectionError, EOFError):
        pass
    finally:
        place.seconds += time.monotonic() - begin
        killer.join()
    assert daemon.wait() == -signal.SIGKILL, daemon.errors()


def one(place, disk, rng, stream):
    nbd_path = place.at("nbd.sock")
    with Daemon(SLUICED, "--blockdev", f"driver={disk.fmt},node-name=d,"
                f"file.driver=file,file.filename={disk.path}", "--nbd-server",
                f"addr.type=unix,addr.path={nbd_path}", "--export",
                "type=nbd,id=e,node-name=d,name=d,writable=on") as daemon:
        daemon.qmp()
        nbd = Nbd(nbd_path, "d")
        use(daemon, nbd, place, disk, rng, stream)
    disk.judge(rng)


def kill(i, memory, slow):
    rng = random.Random(SEED * 1000 + i)
    place = slow if i % 20 == 7 else memory
    disk, place.disk = place.disk, None  # one that failed is not used again
    if disk is None or rng.random() < 0.6:
        disk = Disk(place.at, "qed" if rng.random() < 0.3 else "qcow2")
    one(place, disk, rng, i % 2 == 1)
    place.disk = disk


if __name__ == "__main__":
    places = Place(True), Place(False)
    main([(f"kill {i}", lambda i=i: kill(i, *places)) for i in range(COUNT)],
         memory=True)
