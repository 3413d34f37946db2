#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What a merge moves and takes, in counts: against the closed form, and beside
qemu-storage-daemon's commit of the same images.

merge_counts.py SLUICED [--table]

A byte moves if the survivor does not hold what the disk reads there; it moves
once, however many layers there are.  Extra space is at most 4 MiB, two of the
largest clusters, and metadata.
"""
import json
import os
import shutil
import sys
import time

from harness import Daemon, defer, main, need, run

SLUICED = os.path.abspath(sys.argv[1])
QSD = shutil.which("qemu-storage-daemon")
MIB = 1 << 20
SIZE = 160 * MIB
CLUSTER = 65536
# 4 MiB, two clusters, and tables and counts for at most SIZE (1 in 4096, twice).
MOST_EXTRA = 4 * MIB + 2 * CLUSTER + 2 * SIZE // 4096 + 8 * CLUSTER

need("qemu-img", "qemu-io")


def own_file_system():
    """In memory; what it has left is one figure, whatever moves meanwhile."""
    here = os.getcwd()
    os.mkdir("fs")
    run("mount", "-t", "tmpfs", "none", "fs")
    defer(run, "umount", os.path.abspath("fs"))
    os.chdir("fs")
    defer(os.chdir, here)


def used():
    s = os.statvfs(".")
    return (s.f_blocks - s.f_bfree) * s.f_frsize


class Chain:
    """Layers as sets of MiB, the lowest first; each is written whole."""

    def __init__(self, *layers):
        self.layers = [set(layer) for layer in layers]
        self.names = [f"l{i}" for i in range(len(layers))]

    def make(self):
        below = []
        for name, mib in zip(self.names, self.layers):
            run("qemu-img", "create", "-q", "-f", "qcow2", *below, name,
                str(SIZE))
            writes = [f"write -P {self.names.index(name) + 1} {m}M 1M"
                      for m in sorted(mib)]
            run("qemu-io", "-f", "qcow2", *[a for w in writes
                                            for a in ("-c", w)], name)
            below = ["-b", name, "-F", "qcow2"]
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.names[-1],
            "../model")

    def union(self):
        return set().union(*self.layers)

    def down(self):
        """What the lowest layer does not show: it is below another one."""
        return len(set().union(*self.layers[1:]))

    def up(self):
        return len(self.union() - self.layers[-1])

    def daemon(self, program):
        below, args = None, []
        for name in self.names:
            args += ["--blockdev", json.dumps({
                "driver": "qcow2", "node-name": name, "discard": "unmap",
                "read-only": name != self.names[-1],
                "auto-read-only": True, "backing": below,
                "file": {"driver": "file", "filename": name,
                         "discard": "unmap"}})]
            below = name
        return Daemon(program, *args)

    def run_job(self, program, command, **arguments):
        """The job's report, and the extra blocks at its peak and its end."""
        before = peak = used()
        with self.daemon(program) as d:
            q = d.qmp()
            q.cmd(command, job_id="j", device=self.names[-1],
                  auto_dismiss=False, **arguments)
            report, status = {}, ""
            while status != "concluded":
                peak = max(peak, used())
                status = q.cmd("query-jobs")[0]["status"]
                if program == SLUICED:
                    report = (q.cmd("query-transfers") or [report])[0]
                elif status == "ready":
                    q.cmd("job-complete", id="j")
                time.sleep(0.001)
            assert "error" not in q.cmd("query-jobs")[0]
            q.cmd("quit")
            d.wait()
        return report, peak - before, used() - before


def merge(chain, into):
    """Moves what it must, in little space, and gives the rest back."""
    chain.make()
    down, up = chain.down(), chain.up()
    moves = {"snapshot": down, "overlay": up, "auto": min(down, up)}[into]
    report, peak, end = chain.run_job(
        SLUICED, "block-merge", snapshot=chain.names[0], into=into)
    assert report["bytes-moved"] == moves * MIB, (report, moves)
    assert peak <= MOST_EXTRA, peak
    freed = sum(map(len, chain.layers)) - len(chain.union())
    assert end <= -freed * MIB + MOST_EXTRA, (end, freed)
    survivor = chain.names[0 if into == "snapshot" or
                           (into == "auto" and down <= up) else -1]
    run("qemu-img", "check", "-q", survivor)
    run("qemu-img", "compare", "-q", "-F", "raw", survivor, "../model")
    return moves, peak, end


def overlap(percent):
    """32 MiB of delta on 64 MiB, this part of it over them."""
    first = 64 - 32 * percent // 100
    return Chain(range(64), range(first, first + 32))


def layers(n):
    """A snapshot and n layers, each half over the one below it."""
    return Chain(range(32), *[range(24 + 8 * i, 40 + 8 * i) for i in range(n)])


SHAPES = [(f"delta half as large, {p}% over the snapshot", overlap(p))
          for p in (0, 50, 100)]
SHAPES += [("delta twice as large, half over it", Chain(range(24),
                                                        range(12, 60)))]
SHAPES += [(f"{n} layers", layers(n)) for n in (1, 2, 5, 10)]


def test_of(name, chain, into):
    def test():
        own_file_system()
        merge(chain, into)
    return f"{name}, into {into}", test


def table():
    """As docs/operations.md has it: MiB moved, extra at the peak, at the end."""
    own_file_system()
    for name, chain in SHAPES:
        row = [name]
        for into in ("auto", "snapshot"):
            moves, peak, end = merge(chain, into)
            row.append(f"{moves}, {peak / MIB:+.1f}, {end / MIB:+.1f}")
            for n in chain.names:
                os.unlink(n)
        chain.make()
        _, peak, end = chain.run_job(QSD, "block-commit",
                                     base_node=chain.names[0])
        row.append(f"{peak / MIB:+.1f}, {end / MIB:+.1f}")
        for n in chain.names:
            os.unlink(n)
        print("# | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    if sys.argv[2:] == ["--table"]:
        main([table])
    else:
        main([test_of(name, chain, into) for name, chain in SHAPES
              for into in ("snapshot", "overlay", "auto")])
