#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What one request costs in counts, which do not depend on the machine's speed:
system calls (strace), and in user space instructions, allocations and calls of
memcpy (callgrind), with the functions that the instructions are spent in.

  counts.py BUILD [--disk FOLDER] [--memory FOLDER] [--only TEXT] [--top N]

The servers and the client are those of bench.py: 4 KiB at random, warm.  Both
tools slow a server down, so that a burst holds more requests than it would
otherwise: at depth 32 the calls that a burst shares are counted somewhat too
low, for every server alike."""
import argparse
import collections
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys

import chains
import peers
from ground import GIB, Ground, remove

# Requests before those that are counted, and these.  Two runs are compared, so
# that what comes before and after falls out.
FLAT, DEEP = (1000, 4000), (400, 600)  # peers take ages for a deep one
LAYERS = 100
ALLOCATE = {"malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc",
            "memalign"}
COPY = re.compile(r"_*(memcpy|memmove|mempcpy)")


def system_calls(ground, peer, prepare, load, warm, counted):
    """Calls for each request by name: strace comes when all is set up."""
    out = ground.path("run", "strace")
    with start(ground, peer, prepare) as server:
        ground.load(server, count=warm, seed=1, **load)
        strace = subprocess.Popen(["strace", "-f", "-c", "-U", "calls,name",
                                   "-o", out, "-p", str(server.pid)],
                                  stderr=subprocess.PIPE, text=True)
        strace.stderr.readline()  # "attached"
        ground.load(server, count=counted, seed=2, **load)
        strace.send_signal(signal.SIGINT)
        strace.communicate()
    calls = {}
    with open(out) as f:
        for line in f:
            found = re.match(r"\s*(\d+)\s+(\w+)$", line)
            if found and found[2] != "total":
                calls[found[2]] = int(found[1]) / counted
    return calls


def read_profile(path):
    """Instructions by function; calls of an allocator and of memcpy.  Those
    that callees take are not counted again: longjmp() between coroutines
    confuses callgrind about who called whom."""
    names, self_cost = {}, collections.Counter()
    calls = collections.Counter()
    function, callee, inclusive = None, None, False
    with open(path) as f:
        for line in f:
            # Names come in full once, "cfn=(12) malloc", then as "cfn=(12)".
            found = re.match(r"(c?fn)=\((\d+)\)(?: (.*))?", line)
            if found:
                if found[3]:
                    names[found[2]] = found[3].split("@")[0].split("'")[0]
                if found[1] == "cfn":
                    callee = names[found[2]]
                else:
                    function = names[found[2]]
            elif line.startswith("calls="):
                inclusive = True  # the next line is the callee's
                if callee in ALLOCATE:
                    calls["allocations"] += int(line[6:].split()[0])
                elif COPY.match(callee):
                    calls["copies"] += int(line[6:].split()[0])
            elif line[0] in "+-*0123456789":
                if not inclusive:
                    self_cost[function] += int(line.split()[1])
                inclusive = False
    return self_cost, calls


def profile(ground, peer, prepare, load, count):
    out = ground.path("run", "callgrind")
    remove(out)
    peer.before = ("valgrind", "-q", "--log-file=/dev/null", "--tool=callgrind",
                   f"--callgrind-out-file={out}")
    try:
        with start(ground, peer, prepare) as server:
            ground.load(server, count=count, seed=1, **load)
    finally:
        peer.before = ()
    return read_profile(out)


def instructions(ground, peer, prepare, load, warm, counted):
    few = profile(ground, peer, prepare, load, warm)
    many = profile(ground, peer, prepare, load, warm + counted)
    return [{k: (b[k] - a[k]) / counted for k in b}
            for a, b in zip(few, many)]


def start(ground, peer, prepare):
    image, backing = prepare(peer)
    return peer.start(ground.folders["run"], image, backing=backing)


def requests(ground):
    """Name, load, and what makes the image and its backing file."""

    def full(peer):
        fmt = "raw" if peer.name == peers.NBDKIT else "qcow2"
        return (ground.full("ext4", fmt), fmt), None

    def fresh(peer):
        base = ground.raw("ext4")
        return (ground.overlay("ext4", "qcow2", base, "raw"), "qcow2"), \
            (base, "raw")

    def deep(peer):
        def make(path):
            os.mkdir(path)
            chains.make_chain(path, LAYERS, GIB)
        folder = ground.once("ext4", f"chain{LAYERS}", make)
        return (f"{folder}/{LAYERS - 1}.qcow2", "qcow2"), None

    read, write = {"op": "read"}, {"op": "write"}
    return [
        ("read, depth 1", {**read, "depth": 1}, full),
        ("read, depth 32", {**read, "depth": 32}, full),
        ("write, depth 32", {**write, "depth": 32}, full),
        ("write that allocates, depth 8", {**write, "depth": 8}, fresh),
        (f"read through {LAYERS} layers, depth 32", {**read, "depth": 32},
         deep),
    ]


def count(ground, found, name, load, prepare, top):
    load = {"seconds": 300, **load}
    numbers = DEEP if prepare.__name__ == "deep" else FLAT
    for peer in found:
        if peer.name == peers.NBDKIT and prepare.__name__ != "full":
            continue  # it knows no layers
        how = (ground, peer, prepare, load, *numbers)
        calls = system_calls(*how)
        used, called = instructions(*how)
        most = sorted(calls.items(), key=lambda c: -c[1])
        names = ", ".join(f"{n} {c:.2f}" for n, c in most if c >= 0.02)
        print(f"| {name} | {peer.name} | {sum(calls.values()):.2f}: {names} | "
              f"{sum(used.values()):,.0f} | {called.get('allocations', 0):.2f} "
              f"| {called.get('copies', 0):.2f} |", flush=True)
        for n, c in sorted(used.items(), key=lambda c: -c[1])[:top]:
            print(f"    {c:8,.0f}  {n}", flush=True)


def main():
    p = argparse.ArgumentParser(description="what one request costs")
    p.add_argument("build")
    p.add_argument("--disk", help="folder on a disk file system")
    p.add_argument("--memory", default="/dev/shm", help="folder on tmpfs")
    p.add_argument("--only", default="", help="rows that contain this")
    p.add_argument("--top", type=int, default=0,
                   help="so many functions of each row")
    a = p.parse_args()
    for tool in "valgrind", "strace":
        if not shutil.which(tool):
            sys.exit(f"counts: {tool} is missing: tools/setup.sh --tests")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("counts: terminated"))
    build = os.path.abspath(a.build)
    with contextlib.ExitStack() as stack:
        ground = Ground(stack, build, os.path.abspath(a.disk or build),
                        a.memory, True, 1)
        here = peers.find(build, ground.folders["ext4"])
        found = [here[n] for n in (peers.SLUICE, peers.QSD, peers.QSD_URING,
                                   peers.NBDKIT) if n in here]
        print(f"{ground.where('ext4')}\n\n| request | server | system calls | "
              "instructions | allocations | memcpy |\n" + "|---" * 6 + "|")
        for name, load, prepare in requests(ground):
            if a.only in name:
                count(ground, found, name, load, prepare, a.top)


if __name__ == "__main__":
    main()
