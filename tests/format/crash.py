#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Real images whose cache loses power (driver crash), judged by qemu-img.

crash.py DISK_TOOL: the same requests over and over, with the power lost at
one event after the other.  Afterwards the image has no corruption (leaks are
fine), and every block reads as one of the values that were flushed last or
written since.  A run that is not cut short must be whole without a flush: the
close does that.
"""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

TOOL = sys.argv[1]
BLOCK, BLOCKS = 4096, 64
CRASHED = 99

if not shutil.which("qemu-img"):
    print("1..0 # SKIP qemu-img is missing")
    sys.exit(77)


def requests(rng):
    for byte in range(1, 60):
        at, n = rng.randrange(BLOCKS), rng.randrange(1, 6)
        n = min(n, BLOCKS - at)
        kind = rng.choice(["write"] * 5 + ["zero", "flush"])
        yield kind, at, n, byte


class Disk:
    """Per block the values that a crash may leave."""

    def __init__(self):
        self.now = [0] * BLOCKS
        self.may = [{0} for _ in range(BLOCKS)]

    def begin(self, kind, at, n, byte):
        for i in range(at, at + n if kind != "flush" else at):
            self.may[i].add(byte if kind == "write" else 0)

    def done(self, kind, at, n, byte):
        if kind == "flush":
            self.may = [{v} for v in self.now]
        else:
            self.now[at:at + n] = [byte if kind == "write" else 0] * n


def one(folder, fmt, options, seed, event, then):
    path = os.path.join(folder, "i")
    if os.path.exists(path):
        os.unlink(path)
    subprocess.run(["qemu-img", "create", "-q", "-f", fmt, "-o", options, path,
                    str(BLOCK * BLOCKS)], check=True)
    node = {"driver": fmt, "node-name": "t", "discard": "unmap", "file": {
        "driver": "crash", "crash-at": event, "seed": event * 7 + seed,
        "then": then, "file": {"driver": "file", "filename": path}}}
    tool = subprocess.Popen([TOOL, json.dumps(node)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True, bufsize=1)
    disk = Disk()
    alive = tool.stdout.readline() == "ok\n"
    for kind, at, n, byte in requests(random.Random(seed)):
        if not alive:
            break
        disk.begin(kind, at, n, byte)
        line = {"write": f"write {at * BLOCK} {n * BLOCK} {byte}\n",
                "zero": f"zero {at * BLOCK} {n * BLOCK} {byte % 2}\n",
                "flush": "flush\n"}[kind]
        try:
            tool.stdin.write(line)
        except BrokenPipeError:
            break
        alive = tool.stdout.readline() == "ok\n"
        if alive:
            disk.done(kind, at, n, byte)
    tool.stdin.close()
    status = tool.wait()
    if alive and not status:  # it may still have crashed in the close
        if then == "exit":
            disk.may = [{v} for v in disk.now]
    elif status not in (0, CRASHED):
        raise AssertionError(f"event {event}: the tool ends with {status}")
    judge(path, fmt, disk, event)
    return alive and not status


def judge(path, fmt, disk, event):
    check = subprocess.run(["qemu-img", "check", "-f", fmt, path],
                           capture_output=True, text=True)
    if check.returncode not in (0, 3):
        raise AssertionError(f"event {event}: {check.stdout}{check.stderr}")
    subprocess.run(["qemu-img", "convert", "-f", fmt, "-O", "raw", path,
                    path + ".raw"], check=True)
    with open(path + ".raw", "rb") as f:
        data = f.read()
    for i in range(BLOCKS):
        block = data[i * BLOCK:(i + 1) * BLOCK]
        # Torn at 512 bytes, a block may be of several of its values.
        bad = set(block) - disk.may[i]
        if bad:
            raise AssertionError(f"event {event}: block {i} has {bad}, allowed "
                                 f"are {disk.may[i]}")


def sweep(fmt, options, then):
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access(
            "/dev/shm", os.W_OK) else None) as folder:
        event, over, step = 1, False, 1
        while not over:
            over = one(folder, fmt, options, 3, event, then)
            event += step
            step = 1 if event < 20 else 3
        print(f"# {fmt}, {options}, {then}: events up to {event}", flush=True)


CASES = [("qcow2", "cluster_size=4096", "exit"),
         ("qcow2", "cluster_size=512,refcount_bits=64", "exit"),
         ("qcow2", "cluster_size=65536", "fail"),
         ("qed", "cluster_size=4096,table_size=2", "exit")]

failed = 0
for n, case in enumerate(CASES, 1):
    try:
        sweep(*case)
        print(f"ok {n} - {case[0]} ({case[1]}) survives a lost cache")
    except AssertionError as e:
        failed += 1
        text = str(e).replace("\n", "\n# ")
        print(f"not ok {n} - {case[0]} ({case[1]}) survives a lost cache\n"
              f"# {text}")
print(f"1..{len(CASES)}")
sys.exit(failed != 0)
