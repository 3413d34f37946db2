#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Damaged images: never a crash, never a hang, always an answer.

corrupt.py DISK_TOOL [SEED [COUNT]]: images made by qemu-img get random bytes,
words of all ones, and cuts, mostly in their headers and tables; then they are
opened, checked, read, written and closed.  Any answer is fine but none.
"""
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile

TOOL = sys.argv[1]
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else 250
SCRIPT = ("check\nwrite 4096 70000 5\nzero 200000 100000 1\n"
          "discard 0 65536\nflush\nread {dump}\ncheck\n")


def run(*argv):
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL,
                   stdout=subprocess.DEVNULL)


def make(folder, fmt, options):
    path = os.path.join(folder, f"pristine.{fmt}")
    run("qemu-img", "create", "-q", "-f", fmt, "-o", options, path, "1M")
    commands = ["-c", "write -P 1 0 128k", "-c", "write -P 2 512k 64k"]
    if fmt == "qcow2":
        commands += ["-c", "write -c -P 3 768k 64k", "-c", "write -z 640k 64k"]
    run("qemu-io", "-f", fmt, *commands, path)
    with open(path, "rb") as f:
        return f.read()


def damage(rng, image):
    data = bytearray(image)
    for _ in range(rng.randrange(1, 4)):
        where = rng.random()
        if where < 0.4:
            at = rng.randrange(0, 112)  # the header
        else:
            # The first bytes of a cluster are where tables have entries.
            at = rng.randrange(0, len(data) // 512) * 512 + rng.randrange(64)
        kind = rng.random()
        if kind < 0.4:
            data[at:at + 1] = bytes([rng.randrange(256)])
        elif kind < 0.6:
            data[at:at + 8] = b"\xff" * 8
        elif kind < 0.9:
            data[at:at + 8] = rng.randrange(0, 1 << 63).to_bytes(8, "big")
        else:
            del data[rng.randrange(0, len(data)):]
        if len(data) < 512:
            break
    return bytes(data)


def use(path, fmt, dump):
    options = {"driver": fmt, "node-name": "top", "discard": "unmap",
               "file": {"driver": "file", "filename": path}}
    p = subprocess.run([TOOL, json.dumps(options)], text=True, timeout=60,
                       input=SCRIPT.format(dump=dump), capture_output=True)
    lines = p.stdout.splitlines()
    if p.returncode not in (0, 1) or not lines:
        return f"exit {p.returncode}: {p.stderr[-2000:]}"
    if lines[0] != "ok":
        named = lines[0].count(path)
        if named != 1:
            return f"the error names the file {named} times: {lines[0]}"
    elif len(lines) != 1 + SCRIPT.count("\n"):
        return f"only {len(lines)} answers"
    return None


def main():
    rng = random.Random(SEED)
    folder = tempfile.mkdtemp(
        prefix="sluice-corrupt-",
        dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    failed = 0
    try:
        pristine = [("qcow2", make(folder, "qcow2", "cluster_size=512")),
                    ("qcow2", make(folder, "qcow2", "cluster_size=64k")),
                    ("qed", make(folder, "qed", "cluster_size=4k,"
                                                "table_size=2"))]
        path, dump = os.path.join(folder, "x"), os.path.join(folder, "dump")
        for i in range(COUNT):
            fmt, image = pristine[i % len(pristine)]
            with open(path, "wb") as f:
                f.write(damage(rng, image))
            try:
                wrong = use(path, fmt, dump)
            except subprocess.TimeoutExpired:
                wrong = "it hangs"
            if wrong:
                failed += 1
                print(f"# damage {i} of seed {SEED} ({fmt}): {wrong}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("1..1")
    print(f"{'not ok' if failed else 'ok'} 1 - {COUNT} damaged images")
    return failed != 0


sys.exit(main())
