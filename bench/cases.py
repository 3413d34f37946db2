# SPDX-License-Identifier: BSD-3-Clause
"""What is measured.  A case has a name, the peers it runs on, a sample()
function that measures one of them once, and the bars: which ratio of which
figure to which peer's it has to reach."""
import json
import os
import random
import shutil
import subprocess
import time

import chains
from peers import CEILING, NBDKIT, QSD, QSD2, SLUICE

MIB = 1 << 20
GIB = 1 << 30


class Bar:
    """@figure of Sluice must be at least (or at most) @factor times @peer's."""

    def __init__(self, figure, peer, factor, at_most=False):
        self.figure, self.peer = figure, peer
        self.factor, self.at_most = factor, at_most

    def judge(self, medians):
        ours = medians.get(SLUICE, {}).get(self.figure)
        if self.peer is None:
            ratio, text = ours, f"{self.figure}"
        else:
            theirs = medians.get(self.peer, {}).get(self.figure)
            if not ours or not theirs:
                return None
            ratio = ours / theirs
            text = f"{self.figure} / {self.peer}"
        sign = "<=" if self.at_most else ">="
        ok = ratio <= self.factor if self.at_most else ratio >= self.factor
        return {"text": f"{text} {sign} {self.factor}", "ratio": ratio,
                "ok": ok}


class Case:
    def __init__(self, name, peers, sample, bars, chart=None):
        self.name, self.peers, self.sample = name, peers, sample
        self.bars, self.chart = bars, chart


class Ground:
    """Where files lie: one folder on each file system, images made once."""

    def __init__(self, build, folders, seconds):
        self.build, self.folders, self.seconds = build, folders, seconds
        self.made = {}

    def path(self, fs, name):
        return os.path.join(self.folders[fs], name)

    def once(self, fs, name, make):
        path = self.path(fs, name)
        if path not in self.made:
            if os.path.isdir(path):
                shutil.rmtree(path)
            elif os.path.exists(path):
                os.unlink(path)
            make(path)
            os.sync()
            self.made[path] = True
        return path

    def drop(self, path):
        self.made.pop(path, None)
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.unlink(path)

    def raw(self, fs, gib):
        return self.once(fs, f"raw{gib}", lambda p: write_random(p, gib * GIB))

    def full(self, fs, fmt, gib=1):
        """An image in which everything is allocated."""
        if fmt == "raw":
            return self.raw(fs, gib)

        def make(path):
            raw = self.raw(fs, gib)
            sh("qemu-img", "convert", "-f", "raw", "-O", fmt, raw, path)
        return self.once(fs, f"full{gib}.{fmt}", make)

    def overlay(self, fs, fmt, backing, backing_fmt, name="overlay"):
        path = self.path(fs, f"{name}.{fmt}")
        if os.path.exists(path):
            os.unlink(path)
        sh("qemu-img", "create", "-q", "-f", fmt, "-b", backing, "-F",
           backing_fmt, path)
        return path

    def load(self, server, seconds=None, **options):
        argv = [f"{self.build}/bench/load", "--socket", server.socket,
                "--pid", str(server.pid),
                "--seconds", str(seconds or self.seconds)]
        for key, value in options.items():
            argv += [f"--{key}", str(value)]
        out = subprocess.run(argv, check=True, capture_output=True, text=True)
        return json.loads(out.stdout)


def sh(*argv):
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def write_random(path, size):
    block = bytearray(random.Random(7).randbytes(MIB))
    with open(path, "wb") as f:
        for i in range(size // MIB):
            block[:8] = i.to_bytes(8, "big")
            f.write(block)


def warm_memory(ground, size):
    """Fresh memory of a virtual machine costs far more on first touch than
    later (the host has to find it), whoever touches it.  Page cache and tmpfs
    take from the same free memory, so touch it right before."""
    path = ground.path("tmpfs", "warm")
    with open(path, "wb") as f:
        block = bytes(MIB)
        for _ in range(size // MIB):
            f.write(block)
    os.unlink(path)


DAEMONS = [SLUICE, QSD, QSD2]


def small(name, fs, fmt, bars, direct=False, peers=None, **load):
    """Requests of one size on an image that is allocated."""

    def sample(ground, peer):
        kind = "raw" if peer.name in (NBDKIT, CEILING) else fmt
        image = ground.full(fs, kind)
        with peer.start(ground.folders["run"], (image, kind), direct) as server:
            ground.load(server, seconds=0.3, **load)
            return ground.load(server, **load)
    return Case(name, peers or [SLUICE, QSD, QSD2, NBDKIT, CEILING], sample,
                bars, chart="iops")


def allocating(fs, fmt, bars):
    def sample(ground, peer):
        base = ground.full(fs, "raw")
        warm_memory(ground, GIB)
        overlay = ground.overlay(fs, fmt, base, "raw")
        with peer.start(ground.folders["run"], (overlay, fmt)) as server:
            # Half of the clusters at most, so that it stays allocation.
            result = ground.load(server, op="write", depth=8, count=6000)
        os.unlink(overlay)
        return result
    return Case(f"write 4k that allocates, depth 8, {fmt}, {fs}", DAEMONS,
                sample, bars, chart="iops")


def deep(depth, size, bars):
    def sample(ground, peer):
        def make(path):
            os.mkdir(path)
            chains.make_chain(path, depth, size, GIB)
        folder = ground.once("tmpfs", f"chain{depth}-{size // GIB}", make)
        image = (f"{folder}/{depth - 1}.qcow2", "qcow2")
        run = ground.folders["run"]
        result = {}
        with peer.start(run) as server:
            before = server.private_bytes()
            start = time.monotonic()
            server.qmp("blockdev-add", driver="qcow2", node_name="disk",
                       file={"driver": "file", "filename": image[0]})
            result["open_ms"] = (time.monotonic() - start) * 1e3
            server.qmp("nbd-server-start", addr={
                "type": "unix", "data": {"path": server.socket}})
            server.qmp("block-export-add", type="nbd", id="e",
                       node_name="disk", name="")
            cold = ground.load(server, length=GIB, count=2000)
            result["cold_iops"] = cold["iops"]
            ground.load(server, length=GIB, seconds=0.5)
            result.update(ground.load(server, length=GIB))
            result["private_mib"] = server.private_bytes() / MIB
            result["idle_mib"] = before / MIB
        return result
    return Case(f"read 4k, depth 32, {depth} layers, {size // GIB} GiB, tmpfs",
                DAEMONS if depth <= 100 else [SLUICE, QSD], sample, bars,
                chart="iops")


def run_stream(server, **arguments):
    start = time.monotonic()
    server.qmp("block-stream", job_id="j", device="disk", **arguments)
    server.qmp.wait_event("BLOCK_JOB_COMPLETED")
    return time.monotonic() - start


def stream(fs, fmt, bars):
    gib = 3

    def sample(ground, peer):
        base = ground.raw(fs, gib)
        if peer is None:
            return plain_copy(ground, fs, base, gib * GIB)
        overlay = ground.overlay(fs, fmt, base, "raw")
        warm_memory(ground, gib * GIB)
        with peer.start(ground.folders["run"], (overlay, fmt)) as server:
            cpu = server.cpu_seconds()
            seconds = run_stream(server)
            cpu = server.cpu_seconds() - cpu
        os.unlink(overlay)
        return {"mib_s": gib * 1024 / seconds, "cpu_s": cpu}
    return Case(f"block-stream {gib} GiB raw below {fmt}, {fs}",
                DAEMONS + ["copy"], sample, bars, chart="mib_s")


def plain_copy(ground, fs, base, size):
    """Two threads on tmpfs, cp elsewhere: what the machine can do."""
    target = ground.path(fs, "copied")
    if os.path.exists(target):
        os.unlink(target)
    warm_memory(ground, size)
    start = time.monotonic()
    if fs == "tmpfs":
        half = str(size // MIB // 2)
        copies = [subprocess.Popen(
            ["dd", f"if={base}", f"of={target}", "bs=1M", f"count={half}",
             f"skip={at}", f"seek={at}", "conv=notrunc"],
            stderr=subprocess.DEVNULL) for at in ("0", half)]
        for c in copies:
            c.wait()
    else:
        sh("cp", "--reflink=never", "--sparse=never", base, target)
    seconds = time.monotonic() - start
    os.unlink(target)
    return {"mib_s": size / MIB / seconds}


def far_stream(bars):
    """The source is an NBD server 10 ms away."""

    def sample(ground, peer):
        base = ground.raw("tmpfs", 1)
        path = ground.path("run", "far.sock")
        if os.path.exists(path):
            os.unlink(path)
        far = subprocess.Popen(["nbdkit", "-f", "-U", path, "--filter=delay",
                                "file", base, "rdelay=10ms"])
        try:
            while not os.path.exists(path):
                time.sleep(0.01)
            overlay = ground.path("tmpfs", "far.qcow2")
            sh("qemu-img", "create", "-q", "-f", "qcow2", overlay, "1G")
            warm_memory(ground, GIB)
            with peer.start(ground.folders["run"]) as server:
                server.qmp("blockdev-add", driver="nbd", node_name="far",
                           server={"type": "unix", "path": path})
                server.qmp("blockdev-add", driver="qcow2", node_name="disk",
                           file={"driver": "file", "filename": overlay},
                           backing="far")
                seconds = run_stream(server)
            os.unlink(overlay)
        finally:
            far.terminate()
            far.wait()
        return {"mib_s": 1024 / seconds}
    return Case("block-stream 1 GiB from an NBD source 10 ms away", DAEMONS,
                sample, bars, chart="mib_s")


def busy_stream(fs, bars):
    """A guest writes at random to its own GiB while 2 GiB are streamed."""
    gib = 3

    def sample(ground, peer):
        base = ground.raw(fs, gib)
        overlay = ground.overlay(fs, "qcow2", base, "raw")
        sh("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 1G", overlay)
        warm_memory(ground, 2 * GIB)
        guest = {"op": "write", "depth": 8, "length": GIB}
        with peer.start(ground.folders["run"], (overlay, "qcow2")) as server:
            ground.load(server, seconds=0.5, **guest)
            idle = ground.load(server, **guest)
            start = time.monotonic()
            server.qmp("block-stream", job_id="j", device="disk")
            busy = ground.load(server, seconds=1.2, **guest)
            ended = any(e["event"] == "BLOCK_JOB_COMPLETED"
                        for e in server.qmp.events)
            jobs = server.qmp("query-block-jobs")
            moved = jobs[0]["offset"] - GIB if jobs and not ended else 2 * GIB
            during = max(moved, 1) / MIB / (time.monotonic() - start)
        os.unlink(overlay)
        return {"idle_iops": idle["iops"], "busy_iops": busy["iops"],
                "guest_kept": busy["iops"] / idle["iops"],
                "idle_p99_us": idle["p99_us"], "busy_p99_us": busy["p99_us"],
                "p99_over": busy["p99_us"] / max(2 * idle["p99_us"],
                                                 idle["p99_us"] + 1000),
                "stream_mib_s": during}
    return Case(f"guest's writes during a stream, depth 8, {fs}", DAEMONS,
                sample, bars, chart="guest_kept")


def clones(fs, bars):
    n = 200

    def image_on_disk(path):
        return os.stat(path).st_blocks * 512

    def sample(ground, peer):
        template = ground.full(fs, "qcow2")
        folder = ground.path(fs, "clones")
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder)
        paths = [f"{folder}/{i}.qcow2" for i in range(n)]
        if peer is None:
            start = time.monotonic()
            for p in paths:
                sh("qemu-img", "create", "-q", "-f", "qcow2", "-b", template,
                   "-F", "qcow2", p)
            seconds = time.monotonic() - start
        else:
            with peer.start(ground.folders["run"]) as server:
                start = time.monotonic()
                make_clones(server.qmp, template, paths)
                seconds = time.monotonic() - start
        sh("qemu-img", "check", "-q", paths[-1])
        on_disk = image_on_disk(paths[-1])
        shutil.rmtree(folder)
        return {"clones_s": n / seconds, "kib_each": on_disk / 1024}
    return Case(f"clones of one template, {fs}", DAEMONS + ["qemu-img"], sample,
                bars, chart="clones_s")


def make_clones(qmp, template, paths):
    """Creates a file and formats it, a step at a time for all: the commands
    of one step are sent without waiting for answers."""
    create = "blockdev-create"

    def step(commands):
        for name, arguments in commands:
            qmp.send(name, arguments)
        for _ in commands:
            qmp.answer()

    def jobs_end(ids):
        left = set(ids)
        while left:
            e = qmp.wait_event("JOB_STATUS_CHANGE")
            if e["data"]["status"] == "concluded":
                left.discard(e["data"]["id"])

    ids = list(range(len(paths)))
    step([(create, {"job-id": f"f{i}", "options": {
        "driver": "file", "filename": paths[i], "size": 0}}) for i in ids])
    jobs_end([f"f{i}" for i in ids])
    step([("blockdev-add", {"driver": "file", "node-name": f"n{i}",
                            "filename": paths[i]}) for i in ids])
    step([(create, {"job-id": f"q{i}", "options": {
        "driver": "qcow2", "file": f"n{i}", "size": GIB,
        "backing-file": template, "backing-fmt": "qcow2"}}) for i in ids])
    jobs_end([f"q{i}" for i in ids])
    for q in qmp("query-jobs"):
        if q.get("error"):
            raise RuntimeError(q["error"])
    step([("blockdev-del", {"node-name": f"n{i}"}) for i in ids])


def all_cases():
    cases = []
    for fmt in ("qcow2", "qed"):
        cases += [
            small(f"read 4k, depth 32, {fmt}, ext4", "ext4", fmt,
                  [Bar("iops", CEILING, 0.9), Bar("cpu_us", QSD, 0.6, True),
                   Bar("cpu_us", NBDKIT, 0.8, True)], depth=32),
            small(f"read 4k, depth 32, {fmt}, tmpfs", "tmpfs", fmt,
                  [Bar("iops", CEILING, 0.9), Bar("iops", QSD, 2),
                   Bar("cpu_us", QSD, 0.45, True)], depth=32),
            small(f"write 4k, depth 32, {fmt}, ext4", "ext4", fmt,
                  [Bar("iops", QSD, 1.3), Bar("cpu_us", QSD, 0.6, True)],
                  peers=[SLUICE, QSD, QSD2, NBDKIT], depth=32, op="write"),
            small(f"write 4k, depth 32, {fmt}, tmpfs", "tmpfs", fmt,
                  [Bar("iops", QSD, 1.8), Bar("cpu_us", QSD, 0.6, True)],
                  peers=[SLUICE, QSD, QSD2, NBDKIT], depth=32, op="write"),
        ]
    cases += [
        small("read 4k, depth 1, qcow2, ext4", "ext4", "qcow2",
              [Bar("iops", QSD, 1.35), Bar("iops", NBDKIT, 0.95)], depth=1),
        small("read 4k, depth 32, qcow2, ext4, direct", "ext4", "qcow2",
              [Bar("iops", QSD, 1.0), Bar("cpu_us", QSD, 0.6, True)],
              direct=True, peers=DAEMONS, depth=32),
        small("write 4k, depth 32, qcow2, ext4, direct", "ext4", "qcow2",
              [Bar("iops", QSD, 1.0), Bar("cpu_us", QSD, 0.6, True)],
              direct=True, peers=DAEMONS, depth=32, op="write"),
        small("read 1M in sequence, depth 8, qcow2, ext4", "ext4", "qcow2",
              [Bar("bytes_per_second", NBDKIT, 0.95),
               Bar("bytes_per_second", QSD, 1.2)],
              peers=[SLUICE, QSD, QSD2, NBDKIT],
              depth=8, block=MIB, order="sequential"),
        allocating("ext4", "qcow2", [Bar("iops", QSD, 1.5)]),
        allocating("tmpfs", "qcow2", [Bar("iops", QSD, 1.5)]),
    ]
    for fs in ("tmpfs", "ext4"):
        bars = [Bar("mib_s", QSD, 4), Bar("mib_s", "copy", 0.65)] \
            if fs == "tmpfs" else \
            [Bar("mib_s", QSD, 1.2), Bar("mib_s", "copy", 0.95)]
        cases += [stream(fs, fmt, bars) for fmt in ("qcow2", "qed")]
    cases += [far_stream([Bar("mib_s", QSD, 20)])]
    cases += [busy_stream(fs, [Bar("guest_kept", None, 0.5),
                               Bar("p99_over", None, 1, True)])
              for fs in ("ext4", "tmpfs")]
    cases += [clones(fs, [Bar("clones_s", QSD, 4),
                          Bar("clones_s", "qemu-img", 10),
                          Bar("kib_each", None, 64, True)])
              for fs in ("tmpfs", "ext4")]
    cases += [deep(1, GIB, [Bar("idle_mib", None, 15, True)]),
              deep(10, GIB, [Bar("iops", QSD, 1)]),
              deep(100, GIB, [Bar("open_ms", QSD, 1 / 3, True)]),
              deep(1000, GIB, [Bar("open_ms", QSD, 1 / 3, True),
                               Bar("private_mib", None, 64, True)]),
              deep(10, 1024 * GIB, [Bar("private_mib", None, 64, True)]),
              deep(10, 65536 * GIB, [Bar("private_mib", None, 64, True)])]
    return cases
