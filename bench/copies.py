# SPDX-License-Identifier: BSD-3-Clause
"""Copies of a disk while it is written: what is measured of them."""
import contextlib
import os
import signal
import statistics
import subprocess
import threading
import time

from ground import GIB, MIB, must_be_alike, remove_journals, sh
from judge import Bar, Case
from streams import DAEMONS, ended, nbdkit, plain_copy, run_job


def add_target(ground, server, fs, fmt, size, below="file"):
    """An empty image, open as node "target"."""
    path = ground.path(fs, f"target.{fmt}")
    if os.path.exists(path):
        os.unlink(path)
    sh("qemu-img", "create", "-q", "-f", fmt, path, str(size))
    server.qmp("blockdev-add", driver="file", node_name="target-file",
               filename=path)
    if below != "file":
        server.qmp("blockdev-add", driver="throttle", node_name=below,
                   file="target-file", throttle_group=below)
    server.qmp("blockdev-add", driver=fmt, node_name="target",
               file="target-file" if below == "file" else below)
    return path


def mirror(server, device="disk", **arguments):
    server.qmp("blockdev-mirror", job_id="j", device=device, target="target",
               sync="full", auto_dismiss=False, **arguments)


def switch(server):
    """The switch, and what it says of itself (ours only)."""
    server.qmp("job-complete", id="j")
    server.qmp.wait_event("BLOCK_JOB_COMPLETED")
    error = server.qmp("query-jobs")[0].get("error")
    if error:
        raise RuntimeError(error)
    try:
        return server.qmp("query-transfers")[0]
    except RuntimeError:
        return None


def idle_mirror(fs, fmt, size, bars):
    """All that a disk reads as, while nobody writes."""

    def sample(ground, peer, first):
        source = ground.full(fs, fmt, size)
        if peer is None:
            return plain_copy(ground, fs, ground.raw(fs, size), size)
        ground.warm_memory(size)
        with peer.start(ground.folders["run"], (source, fmt)) as server:
            path = add_target(ground, server, fs, fmt, size)
            start = time.monotonic()
            mirror(server)
            server.qmp.wait_event("BLOCK_JOB_READY")
            seconds = time.monotonic() - start
            server.qmp("block-job-cancel", device="j")
            ended(server.qmp.wait_event("BLOCK_JOB_COMPLETED"))
        if first:
            must_be_alike(fmt, path, source, fmt)
        os.unlink(path)
        return {"mib_s": size / MIB / seconds, "ready_s": seconds}
    return Case(f"mirror {size / GIB:g} GiB {fmt}, {fs}, idle", [fs],
                DAEMONS + ["copy"], sample, bars, chart="mib_s")


def until_ready(server, patience):
    """Seconds from now on; None where it never was."""
    start = time.monotonic()
    while time.monotonic() < start + patience:
        if server.qmp("query-jobs")[0]["status"] == "ready":
            return time.monotonic() - start
        time.sleep(0.005)
    return None


def cancel(server):
    server.qmp("job-cancel", id="j")
    while server.qmp("query-jobs")[0]["status"] != "concluded":
        time.sleep(0.005)
    server.qmp("job-dismiss", id="j")


def busy_mirror(fs, size, bars):
    """The same under random writes, from its start until it is ready, beside
    the copy and the guest alone."""
    writes, patience = {"op": "write", "depth": 8}, 60

    def sample(ground, peer, first):
        source = ground.full(fs, "qcow2", size)
        ground.warm_memory(size)
        with peer.start(ground.folders["run"], (source, "qcow2")) as server:
            idle = ground.load(server, seconds=1, **writes)
            path = add_target(ground, server, fs, "qcow2", size)
            mirror(server)
            alone = until_ready(server, patience)
            cancel(server)
            for node in ("target", "target-file"):
                server.qmp("blockdev-del", node_name=node)
            os.unlink(path)
            ground.warm_memory(size)
            path = add_target(ground, server, fs, "qcow2", size)
            with ground.guest(server, until_end=True, **writes) as busy:
                mirror(server)
                ready = until_ready(server, patience)
            cancel(server)
        os.unlink(path)
        ground.drop(source)  # it was written to
        seconds = patience if ready is None else ready
        return {"ready_s": seconds, "guest_kept": busy["iops"] / idle["iops"],
                "over_alone": seconds / alone,
                "idle_iops": idle["iops"], "busy_iops": busy["iops"]}
    return Case(f"mirror {size / GIB:g} GiB qcow2, {fs}, under 4k writes, "
                "depth 8", [fs], DAEMONS, sample, bars, chart="guest_kept")


def slow_target(size, patience, bars):
    """The guest writes 30 MB/s, the target takes 20: QEMU's never ends."""
    rate = 20 * 1000 * 1000

    def sample(ground, peer, first):
        source = ground.path("tmpfs", "source.qcow2")
        sh("qemu-img", "create", "-q", "-f", "qcow2", source, str(size))
        sh("qemu-io", "-f", "qcow2", "-c", f"write -P 9 0 {size}", source)
        with peer.start(ground.folders["run"]) as server:
            for name, bps in (("slow", rate), ("fast", 30 * 1000 * 1000)):
                server.qmp("object-add", qom_type="throttle-group", id=name,
                           limits={"bps-write": bps})
            server.qmp("blockdev-add", driver="qcow2", node_name="disk",
                       file={"driver": "file", "filename": source})
            server.qmp("blockdev-add", driver="throttle", node_name="guest",
                       file="disk", throttle_group="fast")
            server.qmp("nbd-server-start", addr={
                "type": "unix", "data": {"path": server.socket}})
            server.qmp("block-export-add", type="nbd", id="e",
                       node_name="guest", name="", writable=True)
            path = add_target(ground, server, "tmpfs", "qcow2", size, "slow")
            with ground.guest(server, op="write", block=65536, depth=8,
                              until_end=True) as guest:
                mirror(server, "guest")
                ready = until_ready(server, patience)
            cancel(server)
        os.unlink(path)
        os.unlink(source)
        seconds = patience if ready is None else ready
        # All that was there, and all that was written until then.
        least = (size + guest["bytes_per_second"] * seconds) / rate
        return {"ready_s": seconds, "ready": float(ready is not None),
                "over_least": seconds / least}
    return Case(f"mirror {size // MIB} MiB, guest 30 MB/s, target 20 MB/s",
                ["tmpfs"], DAEMONS, sample, bars)


@contextlib.contextmanager
def far_disks(ground, count, *delay):
    """NBD servers with a delay; their sockets."""
    servers, paths = [], []
    try:
        for i in range(count):
            path = ground.path("run", f"far{i}.sock")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            servers.append(subprocess.Popen(
                ["nbdkit", "-f", "-U", path, "--filter=delay", "memory", "64M",
                 *delay]))
            paths.append(path)
        for path in paths:
            while not os.path.exists(path):
                time.sleep(0.01)
        yield paths, servers
    finally:
        for s in servers:
            s.send_signal(signal.SIGCONT)
            s.terminate()
            s.wait()


def add_far(server, name, path):
    server.qmp("blockdev-add", driver="nbd", node_name=name,
               server={"type": "unix", "path": path})


def serve(server, *nodes):
    server.qmp("nbd-server-start", addr={"type": "unix", "data": {
        "path": server.socket}})
    for i, node in enumerate(nodes):
        server.qmp("block-export-add", type="nbd", id=f"e{i}", node_name=node,
                   name="" if not i else node, writable=True)


def forwarded_write(bars):
    """Both sides are 1 ms away: the slower, not the sum."""

    def sample(ground, peer, first):
        with far_disks(ground, 2, "wdelay=1ms") as (paths, _), \
                peer.start(ground.folders["run"]) as server:
            add_far(server, "disk", paths[0])
            add_far(server, "target", paths[1])
            serve(server, "disk")
            alone = ground.load(server, op="write", depth=1, seconds=1)
            mirror(server, copy_mode="write-blocking")
            server.qmp.wait_event("BLOCK_JOB_READY")
            both = ground.load(server, op="write", depth=1, seconds=1)
            server.qmp("job-cancel", id="j")
        return {"write_ms": 1000 / both["iops"],
                "alone_ms": 1000 / alone["iops"],
                "over_alone": alone["iops"] / both["iops"]}
    return Case("forwarded write, source and target 1 ms away", [],
                DAEMONS, sample, bars)


def one_switch(ground, peer, fs, mib, dirty):
    source = ground.path(fs, "source.qcow2")
    sh("qemu-img", "create", "-q", "-f", "qcow2", source, "1G")
    sh("qemu-io", "-f", "qcow2", "-c", f"write -P 9 0 {mib}M", source)
    os.sync()
    with peer.start(ground.folders["run"], (source, "qcow2")) as server:
        path = add_target(ground, server, fs, "qcow2", GIB)
        if not dirty:
            mirror(server)
            server.qmp.wait_event("BLOCK_JOB_READY")
            os.sync()
        with ground.guest(server, op="write", depth=1, until_end=True,
                          length=16 * MIB) as figures:
            time.sleep(0.3)
            if dirty:
                mirror(server)
                server.qmp.wait_event("BLOCK_JOB_READY")
            report = switch(server)
            time.sleep(0.1)
    os.unlink(path)
    os.unlink(source)
    result = {"longest_ms": figures["max_us"] / 1000}
    if report:
        result["pause_ms"] = report["pause-ns"] / 1e6
        result["held"] = report["requests-held"]
    return result


def pause(fs, dirty, bars):
    """How long the switch holds the guest: four switches a round."""
    mib = 384 if dirty else 16

    def sample(ground, peer, first):
        runs = [one_switch(ground, peer, fs, mib, dirty)
                for _ in range(1 if ground.quick else 4)]
        return {key: statistics.median(r[key] for r in runs)
                for key in runs[0]}
    what = f"{mib} MiB of dirty pages" if dirty else "idle"
    return Case(f"pause at the switch, {fs}, {what}", [fs], DAEMONS, sample,
                bars)


def add_qcow2(server, name, file, backing, **more):
    server.qmp("blockdev-add", driver="qcow2", node_name=name, file=file,
               backing=backing, **more)


def far_stream(server, files, patience):
    add_qcow2(server, "disk", files["top"], "far")
    return run_job(server, "block-stream", patience, device="disk")


def far_commit(server, files, patience):
    """The layer that is committed is the one far away."""
    add_qcow2(server, "low", files["low"], None, read_only=True)
    add_qcow2(server, "mid", "far", "low", read_only=True)
    add_qcow2(server, "disk", files["top"], "mid")
    return run_job(server, "block-commit", patience, device="disk",
                   top_node="mid", base_node="low")


def far_layers(command, run, result, bars):
    """1 GiB of data, 20 ms away; file @result has them in the end.  The quick
    bench measures the slow ones for a few seconds of it."""

    def sample(ground, peer, first):
        fmt = "raw" if run is far_stream else "qcow2"
        source = ground.full("tmpfs", fmt)  # other cases may have written it
        files = {}
        for name in ("low", "top"):
            path = ground.path("tmpfs", f"{name}.qcow2")
            sh("qemu-img", "create", "-q", "-f", "qcow2", path, "1G")
            files[name] = {"driver": "file", "filename": path,
                           "auto-read-only": True}
        ground.warm_memory(GIB)
        with nbdkit(ground, "far.sock", "-r", "--filter=delay", "file", source,
                    "rdelay=20ms") as far, \
                peer.start(ground.folders["run"]) as server:
            server.qmp("blockdev-add", driver="nbd", node_name="far",
                       read_only=True, server={"type": "unix", "path": far})
            done = run(server, files, 3 if ground.quick else 120)
        if first and done.whole:
            must_be_alike("qcow2", files[result]["filename"], source, fmt)
        for f in files.values():
            os.unlink(f["filename"])
        return {"mib_s": done.mib / done.seconds}
    return Case(f"{command} of 1 GiB from a source 20 ms away", ["tmpfs"],
                DAEMONS, sample, bars, chart="mib_s")


def beside_a_hanging_disk(bars):
    """A job starts on disk A while the server behind disk B is stopped."""

    def sample(ground, peer, first):
        with far_disks(ground, 1) as (paths, servers), \
                peer.start(ground.folders["run"]) as server:
            for name in ("a", "b"):
                path = ground.path("tmpfs", f"{name}.qcow2")
                remove_journals(path)
                sh("qemu-img", "create", "-q", "-f", "qcow2", path, "64M")
            server.qmp("blockdev-add", driver="qcow2", node_name="a",
                       file={"driver": "file",
                             "filename": ground.path("tmpfs", "a.qcow2")})
            add_far(server, "b", paths[0])
            server.qmp("blockdev-add", driver="qcow2", node_name="target",
                       file={"driver": "file",
                             "filename": ground.path("tmpfs", "b.qcow2")})
            serve(server, "a", "b")
            with ground.guest(server, op="read", depth=1, seconds=5) as on_a:
                servers[0].send_signal(signal.SIGSTOP)
                # A peer may wait for it before it answers.
                wake = threading.Timer(3.5, servers[0].send_signal,
                                       [signal.SIGCONT])
                wake.start()
                with ground.guest(server, op="write", depth=4, seconds=4.5,
                                  export="b"):
                    time.sleep(0.5)
                    start = time.monotonic()
                    server.qmp("blockdev-mirror", job_id="j", device="a",
                               target="target", sync="full")
                    seconds = time.monotonic() - start
                wake.join()
        return {"start_ms": seconds * 1000, "longest_ms": on_a["max_us"] / 1000}
    return Case("a job starts while another disk's backend hangs", ["tmpfs"],
                DAEMONS, sample, bars)


def copy_cases(quick):
    size = GIB // 2 if quick else 3 * GIB
    slow = (16 * MIB, 4) if quick else (64 * MIB, 15)
    return [
        idle_mirror("tmpfs", "qcow2", size, [Bar("mib_s", "copy", 0.85)]),
        idle_mirror("tmpfs", "qed", size, [Bar("mib_s", "copy", 0.85)]),
        busy_mirror("tmpfs", size, [Bar("guest_kept", None, 0.5),
                                    Bar("over_alone", None, 2, True)]),
        slow_target(*slow, [Bar("ready", None, 1),
                            Bar("over_least", None, 1.1, True)]),
        # A delay of 1 ms takes longer here and there: it is held against that.
        forwarded_write([Bar("over_alone", None, 1.2, True)]),
        pause("ext4", False, [Bar("pause_ms", None, 1, True)]),
        pause("ext4", True, [Bar("pause_ms", None, 1, True)]),
        far_layers("block-stream", far_stream, "top",
                   [Bar("mib_s", None, 400)]),
        far_layers("block-commit", far_commit, "low",
                   [Bar("mib_s", None, 400)]),
        beside_a_hanging_disk([Bar("start_ms", None, 20, True),
                               Bar("longest_ms", None, 20, True)]),
    ]
