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

from disk_harness import Folder, HANG_S, Qmp, run, tap

SLUICE = sys.argv[1]


def ends(how):
    with Folder() as at:
        run(SLUICE, "create", "-f", "qcow2", at("disk"), "1M")
        process = subprocess.Popen(
            [SLUICE, "--json", "serve", "-f", "qcow2", "--nbd",
             "unix:" + at("nbd"), "--control", at("control"), at("disk")],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            process.stdout.readline()  # printed once both sockets are there
            with Qmp(at("control")) as qmp:
                if how is None:
                    qmp.call("quit")
                else:
                    process.send_signal(how)
                code = process.wait(HANG_S)
        finally:
            process.kill()
            process.stdout.close()
            process.wait()
        left = sorted(os.listdir(at(".")))
        if code or left != ["disk"]:
            raise AssertionError(f"it ended with {code} and left {left}")


def odd_sizes():
    with Folder() as at:
        p = run(SLUICE, "create", "-f", "qcow2", at("odd"), "1000", ok=(1,))
        if "multiple of 512" not in p.stderr + p.stdout:
            raise AssertionError(p.stderr + p.stdout)
        with open(at("raw"), "wb") as f:
            f.write(b"r" * 1000)
        # A copy loses no byte; it grows to the next sector, as qemu-img's.
        run(SLUICE, "convert", "-f", "raw", "-O", "qcow2", at("raw"),
            at("copy"))
        info = json.loads(run("qemu-img", "info", "--output=json",
                              at("copy")).stdout)
        if info["virtual-size"] != 1024:
            raise AssertionError(f"{info['virtual-size']} bytes, not 1024")
        run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", at("raw"),
            at("copy"))


sys.exit(tap([("SIGTERM ends it", lambda: ends(signal.SIGTERM)),
              ("SIGINT ends it", lambda: ends(signal.SIGINT)),
              ("SIGHUP ends it", lambda: ends(signal.SIGHUP)),
              ("quit ends it", lambda: ends(None)),
              ("sizes that are no multiple of 512", odd_sizes)]))
