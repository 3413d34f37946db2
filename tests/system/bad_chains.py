# SPDX-License-Identifier: BSD-3-Clause
"""Chains that cannot be opened, and peers that talk nonsense.

bad_chains.py SLUICED SLUICE

Through the daemon and through the command: the error names the file that
failed, once however deep it lies, the class is GenericError, the exit code is
the one of the man page, nothing hangs, and no image is touched.
"""
import glob
import hashlib
import json
import os
import random
import struct
import sys
import threading

from harness import Daemon, Nbd, QmpError, connect, main, nbd_server, need, run

SLUICED, SLUICE = (os.path.abspath(p) for p in sys.argv[1:3])
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                "../../bench"))
import chains  # noqa: E402  lays out qcow2 layers by hand

SIZE = 4 << 20
DEPTH = 40
FAILED, NOT_FOUND, PERMISSION, CORRUPT = 1, 4, 11, 12

need("qemu-img")


def digests():
    """Of every regular file in this folder."""
    found = {}
    for name in sorted(glob.glob("**", recursive=True)):
        if os.path.isfile(name):
            with open(name, "rb") as f:
                found[name] = hashlib.sha256(f.read()).hexdigest()
    return found


def judge(message, failing, says):
    """One line that names the file once and says why it failed."""
    assert "\n" not in message, message
    assert message.count(f"'{failing}'") == 1, (failing, message)
    for text in says:
        assert text in message, (text, message)


def refused_by_command(top, fmt, code, failing, says):
    for verb in (["info"], ["map"], ["serve"], ["serve", "--read-only"]):
        got, text = run(SLUICE, "--json", *verb, top, "-f", fmt, check=False)
        assert got == code, (verb, got, text)
        error = json.loads(text)
        assert error["type"] == "error" and error["exit-code"] == code, error
        assert error["class"] == "GenericError", error
        judge(error["message"], failing, says)
    # For people the same, and a hint behind it.
    got, text = run(SLUICE, "info", top, "-f", fmt, check=False)
    first, *rest = text.splitlines()
    judge(first, failing, says)
    assert got == code and all(r.startswith("hint: ") for r in rest), text


def refused_by_daemon(q, top, fmt, failing, says):
    for read_only in (True, False):
        try:
            q.cmd("blockdev-add", driver=fmt, node_name="n",
                  read_only=read_only, file={"driver": "file", "filename": top})
        except QmpError as e:
            assert e.cls == "GenericError", e
            judge(e.desc, failing, says)
        else:
            raise AssertionError(f"{top} was opened")
        assert q.cmd("query-named-block-nodes") == []


def refused(top, failing, *says, fmt="qcow2", code=FAILED):
    before = digests()
    refused_by_command(top, fmt, code, failing, says)
    with Daemon(SLUICED) as d:
        q = d.qmp()
        refused_by_daemon(q, top, fmt, failing, says)
        # Nothing of the chain stays open or locked.
        for name in glob.glob("*.img"):
            if os.path.isfile(name) and os.path.getsize(name):
                q.cmd("blockdev-add", driver="raw", node_name="n",
                      file={"driver": "file", "filename": name})
                q.cmd("blockdev-del", node_name="n")
        assert d.stop() == 0
    assert digests() == before


def make(name, backing=None, fmt="qcow2", backing_format=None):
    chain = ["-u", "-b", backing, "-F", backing_format or fmt] if backing else []
    run("qemu-img", "create", "-q", "-f", fmt, *chain, name, str(SIZE))


def loop(fmt, length):
    """Images 0 ... length-1, each over the next one, the last over 0."""
    make("0.img", fmt=fmt)
    for i in range(length - 1, 0, -1):
        # QED looks into the file that it names, so that must be there.
        make(f"{i}.img", f"{(i + 1) % length}.img", fmt)
    run("qemu-img", "rebase", "-u", "-f", fmt, "-b", f"{1 % length}.img", "-F",
        fmt, "0.img")


def loops(fmt):
    for length in (1, 2, 3):
        loop(fmt, length)
        refused("0.img", "0.img", "loop", fmt=fmt)
        # The loop begins below an image that is not part of it.
        make("top.img", "0.img", fmt)
        refused("top.img", "0.img", "loop", fmt=fmt)


def a_loop_of_qcow2_images_is_found():
    loops("qcow2")


def a_loop_of_qed_images_is_found():
    loops("qed")


def a_loop_through_other_names_is_found():
    os.mkdir("sub")
    make("0.img", "sub/../0.img")
    refused("0.img", "sub/../0.img", "loop")
    os.unlink("0.img")
    make("1.img")
    os.symlink("1.img", "link.img")
    os.link("1.img", "hard.img")
    for other in ("link.img", "hard.img"):
        make("0.img", other)
        run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "0.img", "-F",
            "qcow2", "1.img")
        refused("1.img", other, "loop")


def bottom(act, *says, code=FAILED):
    """A deep chain whose last image was dealt with."""
    chains.make_chain(".", DEPTH, SIZE)
    os.unlink("0.qcow2")
    act("0.qcow2")
    refused(f"{DEPTH - 1}.qcow2", "0.qcow2", "'1.qcow2'", *says, code=code)


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def cut(length):
    def act(path):
        chains.make_layer(path, SIZE, range(8))
        os.truncate(path, length)
    return act


def a_deep_backing_file_is_missing():
    bottom(lambda path: None, "No such file", code=NOT_FOUND)


def a_deep_backing_file_is_a_dangling_link():
    bottom(lambda path: os.symlink("nowhere", path), "No such file",
           code=NOT_FOUND)


def a_deep_backing_file_is_a_link_to_itself():
    bottom(lambda path: os.symlink(path, path), "symbolic links")


def a_deep_backing_file_is_empty():
    bottom(cut(0), "not in qcow2 format")


def a_deep_backing_file_is_cut_in_the_header():
    bottom(cut(20), "not in qcow2 format")


def a_deep_backing_file_is_cut_before_its_tables():
    bottom(cut(chains.CLUSTER + 10), "L1 table", code=CORRUPT)


def a_deep_backing_file_is_garbage():
    bottom(lambda path: write(path, random.Random(1).randbytes(300000)),
           "not in qcow2 format")


def a_deep_backing_file_has_another_format():
    bottom(lambda path: make(path, fmt="qed"), "not in qcow2 format")


def a_deep_backing_file_is_a_folder():
    bottom(os.mkdir, "directory")


def a_deep_backing_file_is_no_file():
    bottom(os.mkfifo, "neither a regular file nor a block device")


def qed_names_a_bad_backing_file():
    def act(top, fn, *says, code=FAILED):
        make("0.img", fmt="qed")
        make("1.img", "0.img", "qed")
        os.unlink("0.img")
        fn("0.img")
        refused("1.img", "0.img", *says, fmt="qed", code=code)
        os.rmdir("0.img") if os.path.isdir("0.img") else \
            os.path.exists("0.img") and os.unlink("0.img")

    act("1.img", lambda path: None, "No such file", code=NOT_FOUND)
    act("1.img", os.mkdir, "directory")
    act("1.img", lambda path: write(path, b"garbage" * 9999), "format")
    act("1.img", lambda path: write(path, b"QED\0"), "not in QED format")


def a_header_may_not_name_a_protocol():
    for name in ('json:{"driver":"null-co"}',
                 'json:{"driver":"qcow2","file.filename":"0.img"}',
                 "nbd://127.0.0.1:1/x", "nbd:127.0.0.1:1",
                 "nbd+unix:///x?socket=nbd.sock", "http://127.0.0.1/x"):
        make("h.img", name, backing_format="raw")
        refused("h.img", "h.img", name, "no plain local path",
                code=PERMISSION)


def a_header_must_state_an_image_format():
    make("0.img")
    for fmt in ("", "null-co", "file", "nbd", "copy-on-read", "vmdk"):
        chains.make_layer("h.img", SIZE, [], backing="0.img",
                          backing_format=fmt)
        refused("h.img", "h.img", "'0.img'", "format")
    # As qemu-img did before it insisted on -F: no such extension.
    chains.make_layer("h.img", SIZE, [], backing="0.img", backing_format="")
    with open("h.img", "r+b") as f:
        f.seek(104)
        f.write(struct.pack(">II", 0, 0))
    refused("h.img", "h.img", "'0.img'", "not its format")


def a_chain_of_many_images_is_no_loop():
    top = chains.make_chain(".", 1000, SIZE)
    text = run(SLUICE, "--json", "info", top, "-f", "qcow2")[1]
    assert len(json.loads(text)["chain"]) == 1000
    # The thousandth comes back to the first.
    chains.make_layer("0.qcow2", SIZE, [], backing="999.qcow2")
    code, text = run(SLUICE, "--json", "serve", top, "-f", "qcow2",
                     check=False)
    assert code == FAILED and "loop" in json.loads(text)["message"], text


def nonsense(rng):
    nbd = struct.pack(">I", 3)  # the client's flags: what follows is options
    option = struct.pack(">QII", 0x49484156454F5054, 7, 0xffffffff)
    return rng.choice([
        rng.randbytes(rng.randrange(1, 70000)),
        nbd + rng.randbytes(rng.randrange(1, 70000)),
        nbd + option, nbd + option + b"\0" * 100000,
        b"{" * 100000, b"[" * 100000, b'"' + b"x" * 100000,
        b'{"execute": "' + b"y" * 100000 + b'"}\n',
        b"\xff\xfe\0\0" * 1000, b"GET / HTTP/1.1\r\n\r\n"])


def say(path, data):
    with connect(path) as s:
        try:
            s.sendall(data)
            s.shutdown(1)
            while s.recv(65536):
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass


def a_guest_does_not_notice_nonsense():
    rng = random.Random(7)
    make("0.img")
    with Daemon(SLUICED, *nbd_server(), "--blockdev",
                "qcow2,node-name=a,file.driver=file,file.filename=0.img",
                "--export", "nbd,id=e,node-name=a,writable=on") as d:
        q = d.qmp()
        guest = Nbd("nbd.sock", "a")
        data = rng.randbytes(SIZE)
        guest.write(0, data)
        guest.flush()
        over, wrong, reads = threading.Event(), [], 0

        def attack():
            try:
                for path in ["nbd.sock", d.socket] * 60:
                    say(path, nonsense(rng))
            except Exception as e:  # the main thread raises it
                wrong.append(e)
            over.set()

        thread = threading.Thread(target=attack)
        thread.start()
        try:
            where = random.Random(8)
            while not over.is_set() or not reads:
                off = where.randrange(0, SIZE - 65536)
                assert guest.read(off, 65536) == data[off:off + 65536]
                reads += 1
        finally:
            thread.join()
        assert not wrong, wrong
        assert len(q.cmd("query-block-exports")) == 1
        assert d.stop() == 0, d.errors()
    run("qemu-img", "check", "-q", "-f", "qcow2", "0.img")


if __name__ == "__main__":
    main([
        a_loop_of_qcow2_images_is_found, a_loop_of_qed_images_is_found,
        a_loop_through_other_names_is_found, a_deep_backing_file_is_missing,
        a_deep_backing_file_is_a_dangling_link,
        a_deep_backing_file_is_a_link_to_itself, a_deep_backing_file_is_empty,
        a_deep_backing_file_is_cut_in_the_header,
        a_deep_backing_file_is_cut_before_its_tables,
        a_deep_backing_file_is_garbage, a_deep_backing_file_has_another_format,
        a_deep_backing_file_is_a_folder, a_deep_backing_file_is_no_file,
        qed_names_a_bad_backing_file, a_header_may_not_name_a_protocol,
        a_header_must_state_an_image_format,
        a_chain_of_many_images_is_no_loop, a_guest_does_not_notice_nonsense])
