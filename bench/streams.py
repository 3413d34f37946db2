# SPDX-License-Identifier: BSD-3-Clause
"""block-stream: of a base beside the overlay, of one far away, under a guest's
writes, and where the file system shares blocks."""
import collections
import contextlib
import os
import subprocess
import time

from ground import GIB, MIB, backing_of, must_be_alike, remove, sh
from judge import Case
from peers import BUFFERED, QSD, QSD2, SLUICE

DAEMONS = [SLUICE, QSD, QSD2]

Done = collections.namedtuple("Done", "seconds mib whole")


def ended(event):
    """What a job's last event says; it must have done all of it."""
    data = event["data"]
    if "error" in data:
        raise RuntimeError(f"the job failed: {data['error']}")
    if data["offset"] != data["len"]:
        raise RuntimeError(f"the job ended at {data['offset']} of "
                           f"{data['len']} bytes")
    return data


def run_job(server, command, patience=None, **arguments):
    """To its end, or with @patience, in seconds, for as long as that."""
    start = time.monotonic()
    server.qmp(command, job_id="j", **arguments)
    if patience and not ends_in(server, start + patience):
        seconds = time.monotonic() - start
        job = server.qmp("query-block-jobs")[0]
        return Done(seconds, job["offset"] / MIB, False)
    data = ended(server.qmp.wait_event("BLOCK_JOB_COMPLETED"))
    return Done(time.monotonic() - start, data["len"] / MIB, True)


def ends_in(server, deadline):
    while time.monotonic() < deadline:
        if not server.qmp("query-block-jobs"):
            return True
        time.sleep(0.005)
    return False


def run_stream(server, patience=None):
    return run_job(server, "block-stream", patience, device="disk")


def must_be_streamed(overlay, fmt, base, start=0):
    """All of @base from @start on is in the overlay itself."""
    if backing_of(overlay, fmt):
        raise RuntimeError(f"{overlay} still has a backing file")
    must_be_alike(fmt, overlay, base, "raw", start)


def stream(fs, fmt, size, bars):
    def sample(ground, peer, first):
        base = ground.raw(fs, size)
        ground.settle(fs, base)
        if peer is None:
            return plain_copy(ground, fs, base, size)
        overlay = ground.overlay(fs, fmt, base, "raw")
        ground.warm_memory(size)
        with peer.start(ground.folders["run"], (overlay, fmt),
                        backing=(base, "raw")) as server:
            cpu = server.cpu_seconds()
            done = run_stream(server)
            cpu = server.cpu_seconds() - cpu
        if first:
            must_be_streamed(overlay, fmt, base)
        os.unlink(overlay)
        return {"mib_s": done.mib / done.seconds, "cpu_s": cpu}
    return Case(f"block-stream {size / GIB:g} GiB raw below {fmt}, {fs}", [fs],
                [SLUICE, *BUFFERED, "copy"], sample, bars, chart="mib_s")


def plain_copy(ground, fs, base, size):
    """Two threads on tmpfs, cp elsewhere: what the machine can do."""
    target = ground.path(fs, "copied")
    remove(target)
    ground.warm_memory(size)
    start = time.monotonic()
    if fs == "tmpfs":
        half = str(size // MIB // 2)
        copies = [subprocess.Popen(
            ["dd", f"if={base}", f"of={target}", "bs=1M", f"count={half}",
             f"skip={at}", f"seek={at}", "conv=notrunc"],
            stderr=subprocess.DEVNULL) for at in ("0", half)]
        if any([c.wait() for c in copies]):
            raise RuntimeError("dd failed")
    else:
        sh("cp", "--reflink=never", "--sparse=never", base, target)
    seconds = time.monotonic() - start
    os.unlink(target)
    return {"mib_s": size / MIB / seconds}


@contextlib.contextmanager
def nbdkit(ground, name, *arguments):
    """A server of its own, beside the peers; its socket."""
    path = ground.path("run", name)
    remove(path)
    server = subprocess.Popen(["nbdkit", "-f", "-U", path, *arguments])
    try:
        while not os.path.exists(path):
            if server.poll() is not None:
                raise RuntimeError("nbdkit ended at once")
            time.sleep(0.01)
        yield path
    finally:
        server.terminate()
        server.wait()


def far_stream(bars):
    """The source is an NBD server 10 ms away.  The quick bench measures the
    slow ones for a few seconds of it."""

    def sample(ground, peer, first):
        base = ground.raw("tmpfs")
        overlay = ground.path("tmpfs", "far.qcow2")
        sh("qemu-img", "create", "-q", "-f", "qcow2", overlay, "1G")
        ground.warm_memory(GIB)
        with nbdkit(ground, "far.sock", "-r", "--filter=delay", "file", base,
                    "rdelay=10ms") as path, \
                peer.start(ground.folders["run"]) as server:
            server.qmp("blockdev-add", driver="nbd", node_name="far",
                       read_only=True, server={"type": "unix", "path": path})
            server.qmp("blockdev-add", driver="qcow2", node_name="disk",
                       file={"driver": "file", "filename": overlay},
                       backing="far")
            done = run_stream(server, patience=4 if ground.quick else 120)
        if first and done.whole:
            must_be_streamed(overlay, "qcow2", base)
        os.unlink(overlay)
        return {"mib_s": done.mib / done.seconds}
    return Case("block-stream 1 GiB from an NBD source 10 ms away", ["tmpfs"],
                DAEMONS, sample, bars, chart="mib_s")


def busy_stream(fs, size, bars):
    """A guest writes at random to its own third while the rest is streamed;
    it stops with the stream.  The stream runs alone before."""
    own = size // 3
    guest = {"op": "write", "depth": 8, "length": own}

    def prepare(ground, base):
        overlay = ground.overlay(fs, "qcow2", base, "raw")
        sh("qemu-io", "-f", "qcow2", "-c", f"write -P 9 0 {own}", overlay)
        ground.settle(fs, base)
        ground.warm_memory(size - own)
        return (overlay, "qcow2")

    def sample(ground, peer, first):
        base = ground.raw(fs, size)
        run, backing = ground.folders["run"], (base, "raw")
        mib = (size - own) / MIB
        with peer.start(run, prepare(ground, base), backing=backing) as server:
            alone = mib / run_stream(server).seconds
        overlay = prepare(ground, base)
        with peer.start(run, overlay, backing=backing) as server:
            ground.load(server, seconds=0.3, **guest)
            idle = ground.load(server, **guest)
            start = time.monotonic()
            server.qmp("block-stream", job_id="j", device="disk")
            with ground.guest(server, until_end=True, **guest) as busy:
                ended(server.qmp.wait_event("BLOCK_JOB_COMPLETED"))
                rate = mib / (time.monotonic() - start)
        if first:
            must_be_streamed(overlay[0], "qcow2", base, own)
        os.unlink(overlay[0])
        return {"idle_iops": idle["iops"], "busy_iops": busy["iops"],
                "guest_kept": busy["iops"] / idle["iops"],
                "idle_p99_us": idle["p99_us"], "busy_p99_us": busy["p99_us"],
                "p99_over": busy["p99_us"] / max(2 * idle["p99_us"],
                                                 idle["p99_us"] + 1000),
                "alone_mib_s": alone, "stream_mib_s": rate,
                "stream_kept": rate / alone}
    return Case(f"guest's writes during a stream, depth 8, {fs}", [fs],
                DAEMONS, sample, bars, chart="guest_kept")


def busy_merge(fs, size, bars):
    """The same while an overlay that holds all sinks into the snapshot below
    it, which does as well, the guest's own third included."""
    own = size // 3
    guest = {"op": "write", "depth": 8, "length": own}

    def sample(ground, peer, first):
        snapshot = ground.path(fs, "snapshot.qcow2")
        sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2",
           ground.raw(fs, size), snapshot)
        overlay = ground.overlay(fs, "qcow2", snapshot, "qcow2")
        for at in range(0, size, GIB):  # it takes less than 2 GiB at once
            sh("qemu-io", "-f", "qcow2", "-c",
               f"write -P 9 {at} {min(GIB, size - at)}", overlay)
        ground.settle(fs)
        with peer.start(ground.folders["run"], (overlay, "qcow2")) as server:
            ground.load(server, seconds=0.3, **guest)
            idle = ground.load(server, **guest)
            start = time.monotonic()
            server.qmp("block-merge", job_id="j", device="disk",
                       into="snapshot")
            with ground.guest(server, until_end=True, **guest) as busy:
                ended(server.qmp.wait_event("BLOCK_JOB_COMPLETED"))
                rate = size / MIB / (time.monotonic() - start)
        os.unlink(overlay)
        os.unlink(snapshot)
        return {"guest_kept": busy["iops"] / idle["iops"],
                "idle_p99_us": idle["p99_us"], "busy_p99_us": busy["p99_us"],
                "p99_over": busy["p99_us"] / max(2 * idle["p99_us"],
                                                 idle["p99_us"] + 1000),
                "stream_mib_s": rate}
    return Case(f"guest's writes during a merge, depth 8, {fs}", [fs],
                [SLUICE], sample, bars, chart="guest_kept")


def used(path):
    """Bytes in use on the file system."""
    os.sync()
    s = os.statvfs(path)
    return (s.f_blocks - s.f_bfree) * s.f_frsize


def measure_shared(at, size, run):
    """How fast, and how much of it took no new blocks."""
    before = used(at)
    start = time.monotonic()
    run()
    seconds = time.monotonic() - start
    return {"mib_s": size / MIB / seconds,
            "shared": 1 - (used(at) - before) / size}


def shared_stream(fs, bars):
    """Base and overlay are on a file system that can share blocks."""

    def sample(ground, peer, first):
        base = ground.raw(fs)
        overlay = ground.overlay(fs, "qcow2", base, "raw")
        with peer.start(ground.folders["run"], (overlay, "qcow2"),
                        backing=(base, "raw")) as server:
            figures = measure_shared(os.path.dirname(base), GIB,
                                     lambda: run_stream(server))
        if first:
            must_be_streamed(overlay, "qcow2", base)
        os.unlink(overlay)
        return figures
    return Case(f"block-stream 1 GiB raw below qcow2, {fs}", [fs], DAEMONS,
                sample, bars, chart="mib_s")


def shared_convert(fs, bars):
    def sample(ground, peer, first):
        base = ground.raw(fs)
        target = ground.path(fs, "converted.qcow2")
        remove(target)
        argv = ["qemu-img", "convert", "-C"] if peer is None else \
            [f"{ground.build}/sluice", "convert"]
        figures = measure_shared(
            os.path.dirname(base), GIB,
            lambda: sh(*argv, "-f", "raw", "-O", "qcow2", base, target))
        if first:
            must_be_alike("qcow2", target, base, "raw")
        os.unlink(target)
        return figures
    return Case(f"convert 1 GiB raw to qcow2, {fs}", [fs],
                [SLUICE, "qemu-img"], sample, bars, chart="mib_s")
