# SPDX-License-Identifier: BSD-3-Clause
"""What it costs a guest that nothing is lost: the log in shared memory, and
that of what a copy may lack.  Sluice beside itself, without the one in question
("without")."""
import os
import time

from copies import add_target, mirror
from ground import GIB, remove, remove_journals
from judge import Case
from peers import SLUICE, Daemon

CLEARED = 6  # seconds: the log of a copy in step gets short every 5
WRITES = {"op": "write", "depth": 8}


def without_memory(program):
    """The program with a /dev/shm that nobody can write to."""
    return Daemon(SLUICE, program, before=(
        "unshare", "--mount", "sh", "-c",
        "mount -t tmpfs -o ro none /dev/shm && exec \"$@\"", "-"))


def shared_log(bars):
    """Writes that allocate, 64 KiB clusters."""

    def sample(ground, peer, first):
        base = ground.full("ext4", "raw")
        count = 2000 if ground.quick else 6000
        figures = {"iops": 0, "without": 0}
        turns = (("iops", peer), ("without", without_memory(peer.program)))
        for key, daemon in turns + turns[::-1]:
            overlay = ground.overlay("ext4", "qcow2", base, "raw")
            ground.warm_memory(count * 65536)
            with daemon.start(ground.folders["run"], (overlay, "qcow2"),
                              backing=(base, "raw")) as server:
                figures[key] += ground.load(server, count=count, seconds=15,
                                            **WRITES)["iops"] / 2
            os.unlink(overlay)
        return {**figures, "of_without": figures["iops"] / figures["without"]}
    return Case("write 4k that allocates, depth 8, beside the same without the "
                "log in shared memory, ext4", ["ext4"], [SLUICE], sample, bars)


def leave_log(ground, peer, source):
    """The log of a mirror that was in step when its daemon ended."""
    with peer.start(ground.folders["run"], (source, "qcow2")) as server:
        path = add_target(ground, server, "ext4", "qcow2", GIB)
        mirror(server)
        server.qmp.wait_event("BLOCK_JOB_READY")
        time.sleep(CLEARED)
    return path


def dirty_log(bars):
    """Nobody copies any more, so the log alone is measured: a second in which
    every region is touched for the first time, and those after it."""

    def sample(ground, peer, first):
        source = ground.full("ext4", "qcow2")
        target = leave_log(ground, peer, source)
        figures = {}
        for suffix in ("", "_without"):
            os.sync()
            with peer.start(ground.folders["run"], (source, "qcow2"),
                            more=["--resume", "never"]) as server:
                for key in ("touch", "steady"):
                    figures[key + suffix] = ground.load(
                        server, seconds=max(ground.seconds, 1),
                        **WRITES)["iops"]
            remove_journals(source)
        remove(target)
        ground.drop(source)
        return {"touch_kept": figures["touch"] / figures["touch_without"],
                "steady_kept": figures["steady"] / figures["steady_without"],
                "iops": figures["steady"], **figures}
    return Case("write 4k, depth 8, with the log of what a copy lacks, ext4",
                ["ext4"], [SLUICE], sample, bars)
