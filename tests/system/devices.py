# SPDX-License-Identifier: BSD-3-Clause
"""Block devices, as loop devices: raw and qcow2 on them, zeroes, discards,
streams, O_DIRECT, locks, and a device that is too small.

devices.py SLUICED SLUICE
"""
import errno
import hashlib
import json
import os
import stat
import sys
import time

from harness import (Daemon, Nbd, NbdError, QmpError, defer, loop_device,
                     main, nbd_server, need, run)

SLUICED, SLUICE = (os.path.abspath(p) for p in sys.argv[1:3])
SIZE = 16 << 20
MIB = 1 << 20

need("qemu-img", "qemu-io", "losetup", "mkfs.ext4")
if os.geteuid():
    print("1..0 # SKIP loop devices need root")
    sys.exit(77)


def backing_file(name="back", fill=None, size=SIZE):
    with open(name, "wb") as f:
        f.write(bytes([fill]) * size if fill else b"")
        f.truncate(size)
        f.flush()
        os.fsync(f.fileno())  # its blocks are counted once they are there
    return name


def device(name="back", fill=None, size=SIZE, sector=512):
    return loop_device(backing_file(name, fill, size), "--sector-size",
                       str(sector))


def contents(path):
    with open(path, "rb") as f:
        return f.read()


def start(path, fmt="raw", driver="host_device", **more):
    """A daemon that serves the device as export "d"; its QMP."""
    daemon = Daemon(SLUICED, *nbd_server())
    q = daemon.qmp()
    q.cmd("blockdev-add", driver=driver, node_name="f", filename=path,
          discard="unmap", **more)
    q.cmd("blockdev-add", driver=fmt, node_name="d", file="f",
          discard="unmap")
    q.cmd("block-export-add", type="nbd", id="d", node_name="d", writable=True)
    return daemon, q


def refused(fn, *says):
    try:
        fn()
    except QmpError as e:
        assert all(text in e.desc for text in says), e.desc
    else:
        raise AssertionError("not refused")


def mount_ext4(where, sector):
    """A file system on a device of such sectors."""
    path = device(where + ".img", size=8 * MIB, sector=sector)
    run("mkfs.ext4", "-q", "-b", "4096", path)
    os.mkdir(where)
    run("mount", path, where)
    defer(run, "umount", os.path.abspath(where))
    return where


def raw_io(path, **more):
    daemon, _ = start(path, **more)
    with Nbd("nbd.sock", "d") as nbd:
        assert nbd.size == SIZE
        disk = bytearray(contents("back"))

        def write(off, data):
            nbd.write(off, data)
            disk[off:off + len(data)] = data

        # Whole sectors, parts of some, the last one.
        for off, length in ((0, 4096), (10000, 3000), (MIB - 1, 2),
                            (SIZE - 700, 700), (5 * MIB, MIB), (513, 1)):
            write(off, os.urandom(length))
        for kind, off, length in (
                (nbd.ZERO, 5 * MIB + 4096, 8192), (nbd.ZERO, 700, 5000),
                (nbd.ZERO, 8 * MIB + 1, 3 * MIB),
                (nbd.ZERO, SIZE - 100, 100)):
            nbd.do(kind, off, length)
            disk[off:off + length] = bytes(length)
        # What is discarded reads zero or as before.
        nbd.do(nbd.TRIM, 12 * MIB, MIB)
        now = nbd.read(12 * MIB, MIB)
        assert now in (bytes(MIB), bytes(disk[12 * MIB:13 * MIB]))
        disk[12 * MIB:13 * MIB] = now
        nbd.flush()
        for off in range(0, SIZE, MIB):
            assert nbd.read(off, MIB) == disk[off:off + MIB], off
    assert daemon.stop() == 0, daemon.errors()
    with open(path, "rb") as f:
        assert f.read() == disk
    assert stat.S_ISBLK(os.stat(path).st_mode)


def raw_on_a_device():
    raw_io(device(fill=0x55))


def raw_on_a_device_with_o_direct():
    raw_io(device(fill=0x55), cache={"direct": True})


def raw_on_a_device_with_4_kib_sectors():
    raw_io(device(fill=0x55, sector=4096))


def raw_on_a_device_with_4_kib_sectors_and_o_direct():
    raw_io(device(fill=0x55, sector=4096), cache={"direct": True})


def raw_on_a_device_as_a_file():
    raw_io(device(fill=0x55), driver="file")


def raw_of_odd_sizes_with_o_direct():
    """The last sectors are written, and the disk is no longer for it."""
    sizes = ((MIB + 512, 4096), (MIB + 512, 512), (MIB + 1000, 4096),
             (MIB + 4095, 512), (700, 4096))
    for i, (size, sector) in enumerate(sizes):
        where = mount_ext4(f"fs{i}", sector)
        path = os.path.join(where, "disk")
        disk = bytearray(os.urandom(size))
        with open(path, "wb") as f:
            f.write(disk)
        daemon, _ = start(path, driver="file", cache={"direct": True})
        with Nbd("nbd.sock", "d") as nbd:
            assert nbd.size == size, nbd.size
            for n in (1, 100, 511, 512, 600, 513):
                for off in (size - n, max(0, size - 2 * n),
                            max(0, size - n - 4096)):
                    data = os.urandom(n)
                    nbd.write(off, data)
                    disk[off:off + n] = data
                    assert nbd.read(0, size) == disk, (size, sector, off, n)
            nbd.do(nbd.ZERO, size - 300, 300)
            disk[size - 300:] = bytes(300)
            nbd.flush()
            assert nbd.read(0, size) == disk
        assert daemon.stop() == 0, daemon.errors()
        assert contents(path) == disk, (size, sector, os.path.getsize(path))


def a_discard_reaches_the_device():
    path = device(fill=0x55)
    before = os.stat("back").st_blocks
    daemon, _ = start(path)
    with Nbd("nbd.sock", "d") as nbd:
        nbd.do(nbd.TRIM, 0, 8 * MIB)
        nbd.flush()
    assert daemon.stop() == 0
    assert os.stat("back").st_blocks < before * 3 // 4


def qcow2_io(path, **more):
    """What is not written reads zero, whatever the device held before."""
    daemon, q = start(path, "qcow2", **more)
    with Nbd("nbd.sock", "d") as nbd:
        disk = bytearray(nbd.size)
        assert nbd.read(0, MIB) == bytes(MIB)
        for off, length in ((100, 512), (MIB + 65535, 2), (3 * MIB, 200000),
                            (nbd.size - 1, 1)):
            data = os.urandom(length)
            nbd.write(off, data)
            disk[off:off + length] = data
        nbd.do(nbd.ZERO, 3 * MIB + 1000, 100000)
        disk[3 * MIB + 1000:3 * MIB + 101000] = bytes(100000)
        nbd.do(nbd.TRIM, 3 * MIB + 131072, 65536)
        nbd.flush()
        disk[3 * MIB + 131072:3 * MIB + 196608] = \
            nbd.read(3 * MIB + 131072, 65536)
        for off in range(0, nbd.size, MIB):
            assert nbd.read(off, MIB) == disk[off:off + MIB], off
    assert daemon.stop() == 0, daemon.errors()
    run("qemu-img", "check", "-q", "-f", "qcow2", path)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, "seen")
    assert contents("seen") == disk


def qcow2_on_a_device():
    path = device(fill=0xaa)
    run("qemu-img", "create", "-q", "-f", "qcow2", path, "8M")
    qcow2_io(path)
    qcow2_again = json.loads(run(SLUICE, "--json", "check", path, "-f",
                                 "qcow2")[1])
    assert qcow2_again["corruptions"] == qcow2_again["leaks"] == 0


def qcow2_made_on_a_device_by_us():
    path = device(fill=0xaa)
    run(SLUICE, "create", path, "8M", "-f", "qcow2")
    qcow2_io(path)


def qcow2_on_a_device_with_o_direct():
    path = device(fill=0xaa, sector=4096)
    run(SLUICE, "create", path, "8M", "-f", "qcow2")
    qcow2_io(path, cache={"direct": True})


def stream_to_a_device(**more):
    path = device(fill=0xaa)
    run("qemu-img", "create", "-q", "-f", "qcow2", "base", "8M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 3M", "-c",
        "write -P 8 7M 1M", "base")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
        os.path.abspath("base"), "-F", "qcow2", path)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, "want")
    daemon, q = start(path, "qcow2", **more)
    with Nbd("nbd.sock", "d") as nbd:
        want = bytearray(contents("want"))
        q.cmd("block-stream", device="d", job_id="j")
        nbd.write(MIB, b"guest" * 1000)
        want[MIB:MIB + 5000] = b"guest" * 1000
        q.wait_event("BLOCK_JOB_COMPLETED", device="j")
        nbd.flush()
    assert daemon.stop() == 0, daemon.errors()
    info = json.loads(run("qemu-img", "info", "--output=json", "-f", "qcow2",
                          path)[1])
    assert "backing-filename" not in info, info
    run("qemu-img", "check", "-q", "-f", "qcow2", path)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, "seen")
    assert contents("seen") == want


def a_stream_to_a_device():
    stream_to_a_device()


def a_stream_to_a_device_with_o_direct():
    stream_to_a_device(cache={"direct": True})


def a_device_is_locked():
    path = device()
    daemon, q = start(path)
    other = Daemon(SLUICED).qmp()
    refused(lambda: other.cmd("blockdev-add", driver="host_device",
                              node_name="n", filename=path), "lock", path)
    refused(lambda: q.cmd("blockdev-add", driver="host_device", node_name="n",
                          filename=path, read_only=True), "lock", path)
    code, text = run("qemu-io", "-f", "raw", "-c", "write 0 512", path,
                     check=False)
    assert code and "lock" in text, text
    assert daemon.stop() == 0
    other.cmd("blockdev-add", driver="host_device", node_name="n",
              filename=path)
    # Creating an image there fails, and leaves the device what it is.
    code, text = run(SLUICE, "create", path, "8M", "-f", "qcow2", check=False)
    assert code == 6 and f"'{path}'" in text, (code, text)
    assert stat.S_ISBLK(os.stat(path).st_mode)
    assert contents(path) == bytes(SIZE)


def a_device_is_too_small():
    path = device(size=2 * MIB)
    code, text = run(SLUICE, "create", path, "4M", "-f", "raw", check=False)
    assert code == 7 and f"'{path}'" in text, (code, text)
    # A thin image may be larger than its device; then writes fail.
    run(SLUICE, "create", path, "8M", "-f", "qcow2")
    daemon, q = start(path, "qcow2")
    with Nbd("nbd.sock", "d") as nbd:
        wrote = 0
        try:
            while wrote < 8 * MIB:
                nbd.write(wrote, b"x" * 65536)
                wrote += 65536
        except NbdError as e:
            assert e.code == errno.ENOSPC, e
        assert 0 < wrote < 2 * MIB, wrote
        nbd.flush()
        assert nbd.read(0, wrote) == b"x" * wrote
    assert daemon.stop() == 0
    run("qemu-img", "check", "-q", "-f", "qcow2", path, ok=(0, 3))
    text = run("qemu-io", "-f", "qcow2", "-c", f"read -P 120 0 {wrote}",
               path)[1]
    assert "failed" not in text, text


def a_stream_to_a_device_that_is_full_pauses():
    path = device(size=2 * MIB)
    run("qemu-img", "create", "-q", "-f", "qcow2", "base", "8M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 8M", "base")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
        os.path.abspath("base"), "-F", "qcow2", path)
    daemon, q = start(path, "qcow2")
    q.cmd("block-stream", device="d", job_id="j", on_error="enospc")
    q.wait_event("BLOCK_JOB_ERROR", device="j")
    q.wait_event("JOB_STATUS_CHANGE", id="j", status="paused")
    job, = q.cmd("query-block-jobs")
    assert job["io-status"] == "nospace", job
    q.cmd("job-cancel", id="j")
    q.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
    with Nbd("nbd.sock", "d") as nbd:
        assert nbd.read(0, 8 * MIB) == b"\7" * (8 * MIB)
    assert daemon.stop() == 0
    run("qemu-img", "check", "-q", "-f", "qcow2", path, ok=(0, 3))


def cut_and_go_on(open_chain, command, **arguments):
    """Killed in the midst of a job; the next daemon finds its journal."""
    for turn in range(2):
        with Daemon(SLUICED, "--state-dir", "state/here") as d:
            q = d.qmp()
            if not turn:
                open_chain(q)
                q.cmd(command, job_id="j", device="top", speed=2 * MIB,
                      **arguments)
                wait_until(lambda: q.cmd("query-jobs")[0]["current-progress"])
                assert len(os.listdir("state/here")) >= 1
                d.kill()
                d.wait()
                continue
            wait_until(lambda: try_open(open_chain, q))
            assert q.cmd("query-jobs")[0]["id"] == "j", d.errors()
            q.cmd("block-job-set-speed", device="j", speed=0)
            wait_until(lambda: not q.cmd("query-jobs"))
            assert "goes on" in d.errors(), d.errors()
            d.stop()
    assert os.listdir("state/here") == [], os.listdir("state/here")


def try_open(open_chain, q):
    """A killed process's locks outlive it for a moment."""
    try:
        open_chain(q)
    except QmpError as e:
        assert "lock" in str(e), e
        return False
    return True


def wait_until(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


def a_merge_of_devices_goes_on_and_wipes_the_header():
    base, top = device("b"), device("t")
    run("qemu-img", "create", "-q", "-f", "qcow2", base, "12M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 12M", base)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2",
        top)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 2 2M 8M", top)
    run("qemu-img", "convert", "-O", "raw", top, "model")

    os.symlink(top, "link")
    began = []

    def open_chain(q):
        """The next daemon opens it by another name: as after a boot."""
        name = os.path.abspath("link") if began else top
        q.cmd("blockdev-add", driver="qcow2", node_name="top", file={
            "driver": "host_device", "filename": name})
        began.append(name)
    cut_and_go_on(open_chain, "block-merge", into="snapshot", delete=True)
    assert not os.path.exists(top + ".sluice") and os.path.exists(top)
    run("qemu-img", "check", "-q", "-f", "qcow2", base)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", base, "model")
    assert contents(top)[:65536] == bytes(65536), "it passes for an image"


def a_merge_of_devices_stays_above_the_template(delete):
    """Of three layers it goes on in the one that it had begun with: devices
    have no inode that would tell them apart."""
    def test():
        template, snap, top = device("a"), device("b"), device("t")
        run("qemu-img", "create", "-q", "-f", "qcow2", template, "12M")
        run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 12M", template)
        for name, below in (snap, template), (top, snap):
            run("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F",
                "qcow2", name)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 2 1M 4M", snap)
        run("qemu-io", "-f", "qcow2", "-c", "write -P 3 3M 8M", top)
        run("qemu-img", "convert", "-O", "raw", top, "model")
        before = hashlib.sha256(contents(template)).digest()

        def open_chain(q):
            q.cmd("blockdev-add", driver="qcow2", node_name="top", file={
                "driver": "host_device", "filename": top})
        try:
            cut_and_go_on(open_chain, "block-merge", into="snapshot",
                          delete=delete)
        finally:
            assert hashlib.sha256(contents(template)).digest() == before, \
                "the template was written to"
        for name in (snap,) if delete else (snap, top):
            run("qemu-img", "check", "-q", "-f", "qcow2", name)
            run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", name,
                "model")
        info = json.loads(run("qemu-img", "info", "--output=json", "-f",
                              "qcow2", snap)[1])
        assert info["backing-filename"] == template, info
        if delete:
            assert contents(top)[:65536] == bytes(65536)
    return ("a merge of devices goes on above the template" +
            ", and wipes the header" * delete, test)


def an_image_in_a_folder_that_cannot_be_written():
    os.mkdir("ro")
    run("mount", "-t", "tmpfs", "none", "ro")
    defer(run, "umount", os.path.abspath("ro"))
    for name in ("base", "top"):
        open("ro/" + name, "w").close()
    run("qemu-img", "create", "-q", "-f", "qcow2", "base", "12M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 12M", "base")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F",
        "qcow2", "top")
    for name in ("base", "top"):
        run("mount", "--bind", name, "ro/" + name)
        defer(run, "umount", os.path.abspath("ro/" + name))
    run("mount", "-o", "remount,ro", "ro")

    def open_chain(q):
        q.cmd("blockdev-add", driver="qcow2", node_name="top", file={
            "driver": "file", "filename": "ro/top"})
    cut_and_go_on(open_chain, "block-stream")
    assert os.listdir("ro") in (["base", "top"], ["top", "base"])
    run("qemu-io", "-f", "qcow2", "-c", "read -P 1 0 12M", "top")
    assert "backing file" not in run("qemu-img", "info", "top")[1]


def host_device_takes_devices_only():
    backing_file("f")
    q = Daemon(SLUICED).qmp()
    refused(lambda: q.cmd("blockdev-add", driver="host_device", node_name="n",
                          filename="f"), "'f' is no block device")
    refused(lambda: q.cmd("blockdev-add", driver="host_device", node_name="n",
                          filename="/dev/null"), "'/dev/null'")
    refused(lambda: q.cmd("blockdev-add", driver="host_device", node_name="n",
                          filename="/dev/nosuch"), "'/dev/nosuch'")
    assert q.cmd("query-named-block-nodes") == []


if __name__ == "__main__":
    main([raw_on_a_device, raw_on_a_device_with_o_direct,
          raw_on_a_device_with_4_kib_sectors,
          raw_on_a_device_with_4_kib_sectors_and_o_direct,
          raw_on_a_device_as_a_file,
          raw_of_odd_sizes_with_o_direct, a_discard_reaches_the_device,
          qcow2_on_a_device, qcow2_made_on_a_device_by_us,
          qcow2_on_a_device_with_o_direct, a_stream_to_a_device,
          a_stream_to_a_device_with_o_direct, a_device_is_locked,
          a_device_is_too_small, a_stream_to_a_device_that_is_full_pauses,
          a_merge_of_devices_goes_on_and_wipes_the_header,
          a_merge_of_devices_stays_above_the_template(False),
          a_merge_of_devices_stays_above_the_template(True),
          an_image_in_a_folder_that_cannot_be_written,
          host_device_takes_devices_only])
