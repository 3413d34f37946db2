# SPDX-License-Identifier: BSD-3-Clause
"""Chains that cannot be opened: loops, holes, garbage, forbidden references.

bad_chains.py SLUICED SLUICE: each is tried over QMP, on the daemon's command
line and with the command.  There is an error of its class, with the exit code
of the manual, that names the file that failed exactly once however deep it
lies; nothing crashes or hangs, no image changes, and another disk's guest goes
on all the time.
"""
import hashlib
import json
import os
import random
import socket
import sys
import threading

from harness import (DEADLINE, Daemon, Nbd, QmpError, defer, main, need, run)

SLUICED, SLUICE = (os.path.abspath(p) for p in sys.argv[1:3])
DEPTH = 40
FAILED, NOT_FOUND, NOT_PERMITTED, CORRUPT = 1, 4, 11, 12

need("qemu-img")


def image(name, fmt="qcow2", backing=None, backing_fmt="qcow2"):
    """An image of 1 MiB whose header says what we like."""
    if not backing:
        run("qemu-img", "create", "-q", "-f", fmt, name, "1M")
        return
    run("qemu-img", "create", "-q", "-f", fmt, "-u", "-b", "X" * len(backing),
        "-F", backing_fmt, name, "1M")
    with open(name, "r+b") as f:
        data = f.read().replace(b"X" * len(backing), backing.encode())
        f.seek(0)
        f.write(data)


def chain(bottom, bottom_fmt="qcow2", fmt="qcow2", depth=DEPTH):
    """Images over @bottom, which need not be there; the top is layer-1."""
    for i in range(1, depth):
        image(f"layer-{i}", fmt, f"layer-{i + 1}", fmt)
    image(f"layer-{depth}", fmt, bottom, bottom_fmt)
    return "layer-1"


def digests():
    result = {}
    for folder, _, names in os.walk("."):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not name.startswith("guest"):
                with open(path, "rb") as f:
                    result[path] = hashlib.sha256(f.read()).digest()
    return result


class Guest:
    """Writes and reads a disk of the daemon until it is asked to stop."""

    def __init__(self, daemon):
        image("guest.qcow2")
        self.q = daemon.qmp()
        self.q.cmd("blockdev-add", driver="qcow2", node_name="guest",
                   file={"driver": "file", "filename": "guest.qcow2"})
        self.q.cmd("nbd-server-start",
                   addr={"type": "unix", "data": {"path": "guest.sock"}})
        self.q.cmd("block-export-add", type="nbd", id="guest", name="guest",
                   node_name="guest", writable=True)
        self.nbd = Nbd("guest.sock", "guest")
        self.stopping, self.rounds, self.error = False, 0, None
        self.thread = threading.Thread(target=self.main)
        self.thread.start()
        defer(self.stop)

    def main(self):
        try:
            while not self.stopping:
                data = self.rounds.to_bytes(8, "big") * 512
                self.nbd.write(self.rounds % 200 * 4096, data)
                assert self.nbd.read(self.rounds % 200 * 4096, 4096) == data
                self.rounds += 1
        except Exception as e:
            self.error = e

    def check(self):
        """It still does; returns after a round that began after the call."""
        begin = self.rounds
        while self.rounds < begin + 2:
            assert self.error is None and self.thread.is_alive(), self.error
        return True

    def stop(self):
        self.stopping = True
        self.thread.join(DEADLINE)


def refused(top, failing, why, code, fmt="qcow2"):
    """By everybody, for that reason, naming that file once."""
    def judge(text, who):
        assert why in text, f"{who}: {text}"
        assert text.count(f"'{failing}'") == 1 and text.count(failing) == 1, \
            f"{who}: {text}"
        assert "\n" not in text and len(text) < 500, f"{who}: {text}"

    before = digests()
    options = {"driver": fmt, "node-name": "n",
               "file": {"driver": "file", "filename": top}}
    with Daemon(SLUICED) as d:
        guest = Guest(d)
        for read_only in (False, True):
            try:
                guest.q.cmd("blockdev-add", **options, read_only=read_only)
            except QmpError as e:
                assert e.cls == "GenericError", e
                judge(e.desc, "QMP")
            else:
                raise AssertionError(f"QMP: {top} was opened")
            guest.check()
        names = {n["node-name"]
                 for n in guest.q.cmd("query-named-block-nodes", flat=True)}
        assert "n" not in names, names
        guest.stop()
        assert guest.error is None, guest.error
        assert d.stop() == 0
    got, text = run(SLUICED, "--blockdev", json.dumps(options), check=False)
    assert got == 1, (got, text)
    _, _, text = text.strip().partition(json.dumps(options) + ": ")
    message, _, hint = text.partition("\n")
    judge(message, "sluiced")
    assert hint, "sluiced gives no hint: " + text
    got, text = run(SLUICE, "info", top, "-f", fmt, check=False)
    message, _, hint = text.strip().partition("\nhint: ")
    judge(message, "sluice")
    assert got == code, (got, text)
    assert hint, "there is no hint: " + text
    assert digests() == before, "an image has changed"


def loops_of(fmt):
    for length in (1, 2, 3):
        names = [f"{fmt}-{length}-{i}" for i in range(length)]
        for name, below in zip(names, names[1:] + names[:1]):
            image(name, fmt, below, fmt)
        refused(names[0], names[-1], "is a loop", CORRUPT, fmt)


def qcow2_loops():
    loops_of("qcow2")


def qed_loops():
    loops_of("qed")


def a_loop_by_another_name():
    os.mkdir("sub")
    image("one", backing="sub/two")
    image("sub/two", backing="../link")
    os.symlink("one", "link")
    refused("one", "sub/two", "is a loop", CORRUPT)
    image("self", backing="./././self")
    refused("self", "self", "is a loop", CORRUPT)


def a_loop_below_a_long_chain():
    top = chain("last")
    image("last", backing=f"layer-{DEPTH // 2}")
    refused(top, "last", "is a loop", CORRUPT)


def a_file_is_missing():
    refused(chain("gone"), "gone", "No such file", NOT_FOUND)
    refused(chain("gone", "raw"), "gone", "No such file", NOT_FOUND)
    refused(chain("gone", "qed", "qed"), "gone", "No such file", NOT_FOUND,
            "qed")


def a_file_is_truncated():
    top = chain("cut")
    image("cut")
    for size, code in ((0, FAILED), (6, FAILED), (100, CORRUPT),
                       (70000, CORRUPT)):
        os.truncate("cut", size)
        refused(top, "cut", "'cut'", code)
        image("cut")


def a_file_is_garbage():
    rng = random.Random(1)
    with open("junk", "wb") as f:
        f.write(rng.randbytes(300000))
    refused(chain("junk"), "junk", "not in qcow2 format", FAILED)
    refused(chain("junk", "qed", "qed"), "junk", "neither qcow2 nor QED",
            FAILED, "qed")


def a_file_has_another_format():
    image("alien", "qed")
    refused(chain("alien"), "alien", "not in qcow2 format", FAILED)


def a_file_is_a_folder():
    os.mkdir("a-folder")
    refused(chain("a-folder"), "a-folder", "Is a directory", FAILED)
    refused(chain("a-folder", "raw"), "a-folder", "Is a directory", FAILED)


def references_to_other_than_files():
    for name in ('json:{"driver":"null-co"}', "json:garbage",
                 "nbd://localhost/x", "nbd:unix:/nowhere",
                 "nbd+unix:///x?socket=/nowhere", "fat:rw:/etc"):
        for fmt in ("qcow2", "qed"):
            image("bottom", fmt, name, "raw")
            refused(chain("bottom", fmt, fmt, 3), "bottom", name,
                    NOT_PERMITTED, fmt)


def a_backing_file_without_a_format():
    image("below")
    image("bottom", backing="below")
    run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "below", "-F", "qcow2",
        "bottom")
    with open("bottom", "r+b") as f:
        data = f.read()
        at = data.index(b"\xe2\x79\x2a\xca")  # the extension with the format
        f.seek(at)
        f.write(b"\x12\x34\x56\x78")
    refused(chain("bottom"), "bottom", "not its format", FAILED)


def a_chain_that_is_too_deep():
    """The images differ in their name's digits only."""
    image("n0000", backing="n0001")
    with open("n0000", "rb") as f:
        data = f.read(70000)
    at = data.index(b"n0001")
    for i in range(4200):
        with open(f"n{i:04}", "wb") as f:
            f.write(data[:at] + f"n{i + 1:04}".encode() + data[at + 5:])
            f.truncate(262144)
    image("n4200")
    # More images than descriptors at the start are no matter.
    run("prlimit", "--nofile=1024:8192", SLUICE, "info", "n2900", "-f", "qcow2")
    code, text = run(SLUICE, "info", "n0000", "-f", "qcow2", check=False)
    assert code == FAILED, (code, text)
    assert text.count("n0000") == 1 and "more than 4096" in text, text
    with Daemon(SLUICED) as d:
        guest = Guest(d)
        try:
            guest.q.cmd("blockdev-add", driver="qcow2", node_name="n",
                        file={"driver": "file", "filename": "n0000"})
        except QmpError as e:
            assert "more than 4096" in e.desc, e
        else:
            raise AssertionError("it was opened")
        guest.check()
        assert d.stop() == 0


def garbage_on_the_sockets():
    rng = random.Random(7)
    with Daemon(SLUICED) as d:
        guest = Guest(d)
        cut = b'{"execute": "qmp_capabilities"}{"execute": "query-vers'
        deep = b'{"execute": "qmp_capabilities"}' + b"[" * 100000
        for i in range(60):
            path = (d.socket, "guest.sock")[i % 2]
            junk = (rng.randbytes(rng.randrange(1, 200000)), cut, deep,
                    b"\0" * 100000, b"\xff" * 5000)[i // 2 % 5]
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(DEADLINE)
                s.connect(path)
                try:
                    s.sendall(junk)
                    s.shutdown(socket.SHUT_WR)
                    while s.recv(65536):
                        pass
                except (BrokenPipeError, ConnectionResetError):
                    pass
            guest.check()
        guest.stop()
        assert guest.error is None, guest.error
        assert d.stop() == 0
    run("qemu-img", "check", "-q", "guest.qcow2")


if __name__ == "__main__":
    main([qcow2_loops, qed_loops, a_loop_by_another_name,
          a_loop_below_a_long_chain, a_file_is_missing, a_file_is_truncated,
          a_file_is_garbage, a_file_has_another_format, a_file_is_a_folder,
          references_to_other_than_files, a_backing_file_without_a_format,
          a_chain_that_is_too_deep, garbage_on_the_sockets], memory=True)
