# SPDX-License-Identifier: BSD-3-Clause
"""Block devices: loop devices under raw and qcow2.

block_device.py SLUICED SLUICE: needs root, as loop devices do.
"""
import errno
import json
import os
import random
import sys

from harness import (Daemon, Nbd, NbdError, QmpError, loop_device, main, need,
                     run)

SLUICED, SLUICE = (os.path.abspath(p) for p in sys.argv[1:3])
MIB = 1 << 20
SIZE = 16 * MIB

need("losetup", "qemu-img", "qemu-io")


def device(size=SIZE, name="disk"):
    with open(name, "wb") as f:
        f.truncate(size)
    return loop_device(name)


def serve(dev, fmt, **options):
    """A daemon with the device as node d, and an NBD client of it."""
    d = Daemon(SLUICED, "--blockdev", json.dumps(
        {"driver": fmt, "node-name": "d", "discard": "unmap", **options,
         "file": {"driver": "host_device", "filename": dev}}),
        "--nbd-server", "addr.type=unix,addr.path=nbd.sock",
        "--export", "nbd,id=e,node-name=d,name=d,writable=on")
    q = d.qmp()
    return d, q, Nbd("nbd.sock", "d")


def allocated():
    return os.stat("disk").st_blocks * 512


def use(nbd, seed, trim_zeroes):
    """Random requests; the contents that follow."""
    rng = random.Random(seed)
    model = bytearray(nbd.read(0, nbd.size))
    for _ in range(150):
        off = rng.randrange(0, nbd.size // 512) * 512
        length = min(rng.randrange(1, 400) * 512, nbd.size - off)
        kind = rng.random()
        if kind < 0.6:
            data = rng.randbytes(512) * (length // 512)
            nbd.write(off, data)
            model[off:off + length] = data
        elif kind < 0.8 or not trim_zeroes:
            nbd.do(nbd.ZERO, off, length,
                   flags=nbd.NO_HOLE if kind < 0.7 else 0)
            model[off:off + length] = bytes(length)
        else:
            nbd.do(nbd.TRIM, off, length)
            model[off:off + length] = nbd.read(off, length)
    assert nbd.read(0, nbd.size) == model
    nbd.flush()
    return bytes(model)


def raw_is_the_device(**options):
    dev = device()
    d, q, nbd = serve(dev, "raw", **options)
    assert nbd.size == SIZE
    model = use(nbd, 1, True)
    with open(dev, "rb") as f:
        assert f.read() == model, "flushed, and not on the device"
    assert d.stop() == 0
    with open("disk", "rb") as f:
        assert f.read() == model
    info = json.loads(run(SLUICE, "info", dev, "-f", "raw", "--json")[1])
    assert info["chain"][0]["virtual-size"] == SIZE, info


def raw_with_o_direct():
    raw_is_the_device(cache={"direct": True})


def discard_and_zeroes_give_blocks_back():
    dev = device()
    d, q, nbd = serve(dev, "raw")
    nbd.write(0, os.urandom(8 * MIB))
    nbd.flush()
    full = allocated()
    assert full >= 8 * MIB
    nbd.do(nbd.TRIM, 0, 4 * MIB)
    nbd.flush()
    assert allocated() <= full - 4 * MIB, "trim gave nothing back"
    nbd.do(nbd.ZERO, 4 * MIB, 4 * MIB)
    nbd.flush()
    assert allocated() <= full - 8 * MIB, "zeroes gave nothing back"
    assert nbd.read(0, 8 * MIB) == bytes(8 * MIB)
    nbd.do(nbd.ZERO, 0, MIB, flags=nbd.NO_HOLE)
    assert nbd.read(0, MIB) == bytes(MIB)
    assert d.stop() == 0


def qcow2_on_it(**options):
    dev = device()
    run("qemu-img", "create", "-q", "-f", "qcow2", dev, "8M")
    d, q, nbd = serve(dev, "qcow2", **options)
    assert nbd.size == 8 * MIB
    model = use(nbd, 2, True)
    assert d.stop() == 0
    run("qemu-img", "check", "-q", "-f", "qcow2", dev)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", dev, "back")
    with open("back", "rb") as f:
        assert f.read() == model
    run(SLUICE, "check", dev, "-f", "qcow2")


def qcow2_with_o_direct():
    qcow2_on_it(cache={"direct": True})


def an_image_is_created_on_it():
    dev = device()
    with Daemon(SLUICED) as d:
        q = d.qmp()
        q.cmd("blockdev-add", driver="host_device", node_name="f", filename=dev)
        q.cmd("blockdev-create", job_id="c", options={
            "driver": "qcow2", "file": "f", "size": 64 * MIB})
        q.wait_event("JOB_STATUS_CHANGE", id="c", status="concluded")
        job, = q.cmd("query-jobs")
        assert "error" not in job, job
        assert d.stop() == 0
    run("qemu-img", "check", "-q", "-f", "qcow2", dev)
    info = json.loads(run("qemu-img", "info", "--output=json", "-f", "qcow2",
                          dev)[1])
    assert info["virtual-size"] == 64 * MIB, info


def overlay(dev):
    run("qemu-img", "create", "-q", "-f", "raw", "base", "8M")
    with open("base", "r+b") as f:
        f.write(random.Random(3).randbytes(6 * MIB))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
        os.path.abspath("base"), "-F", "raw", dev)


def a_stream_fills_it():
    for size, direct in ((SIZE, False), (SIZE, True)):
        dev = device(size, f"disk{direct}")
        overlay(dev)
        d, q, nbd = serve(dev, "qcow2", cache={"direct": direct})
        nbd.write(MIB, b"x" * 4096)
        q.cmd("block-stream", device="d", job_id="j")
        done = q.wait_event("BLOCK_JOB_COMPLETED", device="j")
        assert "error" not in done["data"], done
        assert d.stop() == 0
        run("qemu-img", "check", "-q", "-f", "qcow2", dev)
        with open("base", "rb") as f:
            want = bytearray(f.read())
        want[MIB:MIB + 4096] = b"x" * 4096
        os.rename("base", "gone")  # it is not needed any more
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", dev, "back")
        with open("back", "rb") as f:
            assert f.read() == want


def a_full_device_pauses_the_stream():
    dev = device(4 * MIB)
    overlay(dev)
    d, q, nbd = serve(dev, "qcow2")
    q.cmd("block-stream", device="d", job_id="j")
    q.wait_event("JOB_STATUS_CHANGE", id="j", status="paused")
    job, = q.cmd("query-block-jobs")
    assert job["io-status"] == "nospace", job
    with open("base", "rb") as f:  # the guest reads on
        assert nbd.read(0, 8 * MIB) == f.read()
    try:
        for off in range(0, 8 * MIB, 65536):
            nbd.write(off, b"y" * 65536)
        raise AssertionError("more was written than there is room for")
    except NbdError as e:
        assert e.code == errno.ENOSPC, e
    q.cmd("job-cancel", id="j")
    q.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
    assert d.stop() == 0
    run("qemu-img", "check", "-q", "-f", "qcow2", dev, ok=(0, 3))


def nobody_else_may_write():
    dev = device()
    d, q, nbd = serve(dev, "raw")
    for tool in (["qemu-io", "-f", "raw", "-c", "write 0 512", dev],
                 [SLUICE, "serve", dev, "-f", "raw"]):
        code, text = run(*tool, check=False)
        assert code and "lock" in text, (tool, text)
    # Nor we ourselves.
    try:
        q.cmd("blockdev-add", driver="host_device", node_name="x", filename=dev)
    except QmpError as e:
        assert "lock" in e.desc, e
    else:
        raise AssertionError("it was opened twice")
    assert d.stop() == 0
    run("qemu-io", "-f", "raw", "-c", "write 0 512", dev)


def a_file_is_no_device():
    with open("plain", "wb") as f:
        f.truncate(MIB)
    with Daemon(SLUICED) as d:
        try:
            d.qmp().cmd("blockdev-add", driver="host_device", node_name="x",
                        filename="plain")
        except QmpError as e:
            assert "'plain'" in e.desc and "block device" in e.desc, e
        else:
            raise AssertionError("it was opened")


if __name__ == "__main__":
    main([raw_is_the_device, raw_with_o_direct,
          discard_and_zeroes_give_blocks_back, qcow2_on_it, qcow2_with_o_direct,
          an_image_is_created_on_it, a_stream_fills_it,
          a_full_device_pauses_the_stream, nobody_else_may_write,
          a_file_is_no_device])
