# SPDX-License-Identifier: BSD-3-Clause
"""What a guest's requests cost: reads and writes of one size on an image that
is allocated, writes that allocate, and a daemon at rest."""
import contextlib
import os

from ground import GIB, MIB
from judge import Case
from peers import (BUFFERED, CEILING, DIRECT, NBDKIT, QSD, QSD2, SLUICE)


@contextlib.contextmanager
def kept_to(cpus):
    """Whoever is started meanwhile runs on these."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def small(name, fs, fmt, bars, direct=False, one_cpu=False, **load):
    """Requests of one size at random, or in sequence; @one_cpu: server and
    client share it, so that nobody wakes a CPU that sleeps."""

    def sample(ground, peer, first):
        kind = "raw" if peer.name in (NBDKIT, CEILING) else fmt
        image = (ground.full(fs, kind), kind)
        cpus = os.sched_getaffinity(0)
        if not direct:
            ground.settle(fs, image[0])
        with kept_to({min(cpus)} if one_cpu else cpus), \
                peer.start(ground.folders["run"], image, direct) as server:
            ground.load(server, seconds=0.3 * min(ground.seconds, 1), **load)
            return ground.load(server, **load)

    peers = [SLUICE, *(DIRECT if direct else BUFFERED), NBDKIT]
    if load.get("op") != "write" and not direct:
        peers.append(CEILING)
    return Case(f"{name}, {fmt}, {fs}{', direct' if direct else ''}", [fs],
                peers, sample, bars, chart="iops")


def allocating(fs, fmt, bars):
    """A third of the clusters at most, so that it stays allocation."""

    def sample(ground, peer, first):
        base = ground.full(fs, "raw")
        overlay = ground.overlay(fs, fmt, base, "raw")
        count, seconds = (2000, 1) if ground.quick else (6000, 15)
        ground.settle(fs, base)
        ground.warm_memory(count * 65536)
        with peer.start(ground.folders["run"], (overlay, fmt),
                        backing=(base, "raw")) as server:
            result = ground.load(server, op="write", depth=8,
                                 count=count, seconds=seconds)
        os.unlink(overlay)
        return result
    return Case(f"write 4k that allocates, depth 8, {fmt}, {fs}", [fs],
                [SLUICE, *BUFFERED], sample, bars, chart="iops")


def idle(bars):
    """One disk, nobody has asked for anything; then after a load."""

    def sample(ground, peer, first):
        image = (ground.full("tmpfs", "qcow2"), "qcow2")
        if peer.name == NBDKIT:
            image = (ground.raw("tmpfs"), "raw")
        with peer.start(ground.folders["run"], image) as server:
            before = server.private_bytes()
            ground.load(server, length=GIB, count=20000)
            after = server.private_bytes()
        return {"private_mib": before / MIB, "after_load_mib": after / MIB}
    return Case("private memory, idle with one disk", ["tmpfs"],
                [SLUICE, QSD, QSD2, NBDKIT], sample, bars)
