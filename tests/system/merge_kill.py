#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 of the daemon in the midst of merges, again and again.

merge_kill.py SLUICED [SEED [KILLS]]: a client writes sectors and flushes while
block-merge runs, in either direction, between images of any format and cluster
size.  The daemon is killed at a random moment.  Then qemu-img, which sees the
files alone, must find in the disk what was flushed; the next daemon goes on with
the merge by itself, and what was acknowledged is there.  So one merge is killed
several times until it ends; then what survived is the disk, and nothing but
leaks is wrong with it.
"""
import os
import random
import signal
import sys
import threading
import time

from harness import Daemon, Nbd, main, need, run
from sectors import Sectors

SLUICED = os.path.abspath(sys.argv[1])
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
KILLS = int(sys.argv[3]) if len(sys.argv) > 3 else 100
MIB = 1 << 20
SIZE, DEPTH = 6 * MIB, 8
SPEED = 2 * MIB       # some seconds for a merge
LONGEST_LIFE = 0.35   # of a daemon, in seconds
EACH = 5              # kills of one merge

cut = []  # for each life of a daemon: did it find a merge under way?

need("qemu-img", "qemu-io")


def read_all(nbd):
    return b"".join(nbd.read(at, MIB) for at in range(0, SIZE, MIB))


class Merge:
    """A snapshot and an overlay of random formats, both half full."""

    def __init__(self, rng):
        self.rng = rng
        self.below, self.above = rng.choice(
            [("raw", "qcow2"), ("qcow2", "qcow2"), ("qcow2", "qed"),
             ("qed", "qcow2"), ("qed", "qed")])
        self.into = rng.choice(["snapshot", "snapshot", "overlay"])
        for name in ("base", "top", "top.sluice", "base.sluice"):
            if os.path.exists(name):
                os.unlink(name)
        self.create(self.below, "base")
        self.create(self.above, "top", "-b", "base", "-F", self.below)
        for fmt, name in ((self.below, "base"), (self.above, "top")):
            for _ in range(6):
                at = rng.randrange(0, SIZE - MIB, 512)
                run("qemu-io", "-f", fmt, "-c", f"write -P {rng.randrange(1, 255)} "
                    f"{at} {rng.randrange(512, MIB, 512)}", name)
        run("qemu-img", "convert", "-f", self.above, "-O", "raw", "top", "model")
        with open("model", "rb") as f:
            self.sectors = Sectors(f.read())

    def create(self, fmt, name, *backing):
        size = {"raw": [], "qcow2": [512, 4096, 65536, 1 << 20],
                "qed": [4096, 65536]}[fmt]
        options = ["-o", f"cluster_size={self.rng.choice(size)}"] if size else []
        run("qemu-img", "create", "-q", "-f", fmt, *options, *backing, name,
            str(SIZE))

    def daemon(self):
        return Daemon(SLUICED, "--blockdev", f"driver={self.above},node-name=top,"
                      "discard=unmap,file.driver=file,file.filename=top",
                      "--nbd-server", "addr.type=unix,addr.path=nbd.sock",
                      "--export", "type=nbd,id=e,node-name=top,name=a,"
                      "writable=on")

    def begin(self, daemon):
        daemon.clients[0].cmd("block-merge", job_id="m", device="top",
                              into=self.into, speed=SPEED, exclusive=True)

    def is_over(self, qmp):
        """And what it was like: it must not have failed."""
        for _ in range(2):
            for e in qmp.events:
                if e["event"] == "BLOCK_JOB_COMPLETED":
                    assert "error" not in e["data"], e
            if not qmp.cmd("query-jobs"):
                return True
            time.sleep(0.001)
        return False

    def live(self, first):
        """One life of a daemon; true where the merge ended in it."""
        was_cut = os.path.exists("top.sluice")
        with self.daemon() as daemon:
            daemon.qmp()
            nbd = Nbd("nbd.sock", "a")
            # What the last one had acknowledged is there already.
            data = read_all(nbd)
            self.sectors.judge(data, self.sectors.acknowledged,
                               "what was acknowledged")
            self.sectors.is_now(data)
            if first:
                self.begin(daemon)
            cut.append(was_cut)
            while was_cut and "goes on" not in daemon.errors():
                time.sleep(0.001)
            killer = threading.Timer(self.rng.random() * LONGEST_LIFE,
                                     daemon.kill)
            killer.start()
            try:
                self.sectors.load(nbd, self.rng, DEPTH)
            except (ConnectionError, EOFError):
                pass
            killer.join()
            assert daemon.wait() == -signal.SIGKILL, daemon.errors()
        self.sectors.judge_file(self.above, "top", "judge", self.sectors.may,
                                "what was flushed")

    def end(self):
        """The last daemon lives until the merge has ended."""
        with self.daemon() as daemon:
            qmp = daemon.qmp()
            nbd = Nbd("nbd.sock", "a")
            data = read_all(nbd)
            self.sectors.judge(data, self.sectors.acknowledged,
                               "what was acknowledged")
            self.sectors.is_now(data)
            if qmp.cmd("query-jobs"):
                qmp.cmd("block-job-set-speed", device="m", speed=0)
            for _ in range(20):
                self.sectors.write(nbd, self.rng)
                nbd.reply()
                self.sectors.replied()
            while not self.is_over(qmp):
                pass
            nbd.flush()
            self.sectors.flushed(nbd)
            data = read_all(nbd)
            head = qmp.cmd("query-block-exports")[0]["node-name"]
            qmp.cmd("quit")
            assert daemon.wait() == 0, daemon.errors()
        name, fmt = (("top", self.above) if head == "top" else
                     ("base", self.below))
        self.sectors.judge_file(fmt, name, "judge", self.sectors.may, "the end")
        with open("judge", "rb") as f:
            assert f.read() == data
        assert not os.path.exists("top.sluice")


def one(seed, kills):
    def test():
        merge = Merge(random.Random(seed))
        for i in range(kills):
            merge.live(i == 0)
        merge.end()
    test.__name__ = f"a merge that is killed {kills} times, {seed}"
    return test


def merges_were_under_way():
    """Of the daemons that could have found one, most did."""
    found, could = sum(cut), len(cut) * (EACH - 1) // EACH
    print(f"# {found} of {could} daemons went on with a merge")
    assert found > could // 2


if __name__ == "__main__":
    tests = [one(SEED * 1000 + i, EACH) for i in range(max(KILLS // EACH, 1))]
    main([(t.__name__, t) for t in tests] +
         [("merges were under way", merges_were_under_way)], memory=True)
