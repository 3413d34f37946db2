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

In the last runs the shared memory is far too small for what is not yet in the
image: then what a write changes is flushed before it is acknowledged.
"""
import os
import random
import signal
import sys
import threading
import time

from harness import Daemon, Nbd, QmpError, folder, main, mount, need, run
from sectors import Sectors

SLUICED = os.path.abspath(sys.argv[1])
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else 100
SIZE, DEPTH = 8 << 20, 8
SPAN_REPLIES = 150

LITTLE = 10  # of them, with little shared memory
LITTLE_BYTES = "16k"

need("qemu-img", "unshare")


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

    def replied(self, n):
        self.replies += n

    def span(self):
        return SPAN_REPLIES * self.seconds / self.replies


class Disk(Sectors):
    """An image over the template, and the program that serves it."""

    def __init__(self, at, fmt, program=SLUICED, options=()):
        self.at, self.fmt, self.program = at, fmt, program
        self.path = at("disk." + fmt)
        run("qemu-img", "create", "-q", "-f", fmt, "-b", at("template"), "-F",
            "raw", *options, self.path)
        with open(at("template"), "rb") as f:
            super().__init__(f.read())

    def judge_by(self, allowed, what):
        return self.judge_file(self.fmt, self.path, self.at("judge.raw"),
                               allowed, what)

    def open_again(self, read_only):
        """Whoever comes next writes what the one that was killed could not."""
        with Daemon(self.program, "--blockdev",
                    f"driver={self.fmt},node-name=d,"
                    f"read-only={read_only},file.driver=file,"
                    f"file.filename={self.path}", "--resume", "never",
                    folder=self.at("")) as d:
            d.qmp().cmd("quit")
            if d.wait():
                raise AssertionError(d.errors())

    def judge_both(self, rng):
        self.judge_by(self.may, "what was flushed")
        self.open_again(rng.choice(["on", "off"]))
        self.is_now(self.judge_by(self.acknowledged, "what was acknowledged"))


def use(daemon, nbd, place, disk, rng, stream):
    begin = time.monotonic()
    killer = threading.Timer(rng.random() * place.span(), daemon.kill)
    killer.start()
    try:
        if stream:
            try:
                daemon.clients[0].cmd("block-stream", job_id="j", device="d")
            except QmpError as e:
                # A stream of an earlier run of this disk was done, or goes on.
                if "no backing file" not in e.desc and \
                        "already in use" not in e.desc:
                    raise
        disk.load(nbd, rng, DEPTH, place.replied)
    except (ConnectionError, EOFError):
        pass
    finally:
        place.seconds += time.monotonic() - begin
        killer.join()
    assert daemon.wait() == -signal.SIGKILL, daemon.errors()


def one(place, disk, rng, stream):
    nbd_path = place.at("nbd.sock")
    with Daemon(disk.program, "--blockdev", f"driver={disk.fmt},node-name=d,"
                f"file.driver=file,file.filename={disk.path}", "--nbd-server",
                f"addr.type=unix,addr.path={nbd_path}", "--export",
                "type=nbd,id=e,node-name=d,name=d,writable=on",
                folder=place.path) as daemon:
        daemon.qmp()
        nbd = Nbd(nbd_path, "d")
        use(daemon, nbd, place, disk, rng, stream)
    disk.judge_both(rng)


def kill(i, memory, slow):
    rng = random.Random(SEED * 1000 + i)
    place = slow if i % 20 == 7 else memory
    disk, place.disk = place.disk, None  # one that failed is not used again
    if disk is None or rng.random() < 0.6:
        disk = Disk(place.at, "qed" if rng.random() < 0.3 else "qcow2")
    one(place, disk, rng, i % 2 == 1)
    place.disk = disk


def with_little_memory(script, memory):
    """Makes @script the program, with @memory as its shared memory."""
    with open(script, "w") as f:
        f.write(f"""#!/bin/sh
exec unshare --mount sh -c 'mount --bind {memory} /dev/shm && exec "$@"' \\
    sh {SLUICED} "$@"
""")
    os.chmod(script, 0o755)
    return script


def kill_with_little_memory(i, place):
    rng = random.Random(SEED * 2000 + i)
    memory = place.at("shm")
    mount("tmpfs", memory, "-o", "size=" + LITTLE_BYTES)
    one(place, Disk(place.at, "qcow2",
                    with_little_memory(place.at("sluiced-little"), memory),
                    ["-o", "cluster_size=512"]), rng, False)


if __name__ == "__main__":
    places = Place(True), Place(False)
    main([(f"kill {i}", lambda i=i: kill(i, *places))
          for i in range(COUNT)] +
         [(f"kill {i} with little shared memory",
           lambda i=i: kill_with_little_memory(i, places[1]))
          for i in range(LITTLE)], memory=True)
