#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""`sluice serve` ends by each signal and by quit, and leaves nothing behind.

serve_ends.py SLUICE.  Also: sizes that are no multiple of 512.
"""
import json
import os
import signal
import subprocess
import sys

from harness import DEADLINE, Process, Qmp, main, need, run

SLUICE = os.path.abspath(sys.argv[1])

need("qemu-img")


def ends(how):
    run(SLUICE, "create", "-f", "qcow2", "disk", "1M")
    serve = Process(SLUICE, "--json", "serve", "-f", "qcow2", "--nbd",
                    "unix:nbd", "--control", "control", "disk",
                    stdout=subprocess.PIPE)
    serve.process.stdout.readline()  # printed once both sockets are there
    if how is None:
        Qmp("control").cmd("quit")
    else:
        serve.process.send_signal(how)
    code = serve.process.wait(DEADLINE)
    assert not code and os.listdir() == ["disk"], (code, os.listdir())


def odd_sizes():
    code, text = run(SLUICE, "create", "-f", "qcow2", "odd", "1000",
                     check=False)
    assert code == 1 and "multiple of 512" in text, (code, text)
    with open("raw", "wb") as f:
        f.write(b"r" * 1000)
    # A copy loses no byte; it grows to the next sector, as qemu-img's.
    run(SLUICE, "convert", "-f", "raw", "-O", "qcow2", "raw", "copy")
    info = json.loads(run("qemu-img", "info", "--output=json", "copy")[1])
    assert info["virtual-size"] == 1024, info
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", "raw", "copy")


if __name__ == "__main__":
    main([("SIGTERM ends it", lambda: ends(signal.SIGTERM)),
          ("SIGINT ends it", lambda: ends(signal.SIGINT)),
          ("SIGHUP ends it", lambda: ends(signal.SIGHUP)),
          ("quit ends it", lambda: ends(None)),
          ("sizes that are no multiple of 512", odd_sizes)])
