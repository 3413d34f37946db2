# SPDX-License-Identifier: BSD-3-Clause
"""Many layers, and many clones of one: reads through deep chains, opening
them, creating overlays."""
import os
import shutil
import time

import chains
from ground import GIB, MIB, backing_of, must_be_alike, remove, sh
from judge import Case
from peers import QSD, QSD2, SLUICE

DAEMONS = [SLUICE, QSD, QSD2]


def export(server, name, image):
    """Opens an image with its chain; the export is called as the node."""
    server.qmp("blockdev-add", driver="qcow2", node_name=name, read_only=True,
               file={"driver": "file", "filename": image, "read-only": True})
    server.qmp("block-export-add", type="nbd", id=f"export-{name}",
               node_name=name, name=name)


def deep(depth, size, bars, cluster=chains.CLUSTER, peers=DAEMONS):
    """Reads over the whole disk.  Where the data of such a disk fit into
    memory (1 GiB), all that the guest sees is filled; the data of the others
    are holes of the host file, and only their tables are there.

    The depth of 1 that it is held against, an image of the same size with
    everything allocated, is served by the same process in between, so that a
    machine that becomes faster or slower meanwhile does so for both."""

    def chain(ground, depth):
        def make(path):
            os.mkdir(path)
            chains.make_chain(path, depth, size, fill=size <= GIB,
                              cluster=cluster)
        folder = ground.once("tmpfs", f"chain{depth}-{size // GIB}", make)
        return f"{folder}/{depth - 1}.qcow2"

    def measure(ground, server, name):
        ground.load(server, export=name, seconds=ground.seconds / 2)
        return ground.load(server, export=name)

    def sample(ground, peer, first):
        image, flat = chain(ground, depth), chain(ground, 1)
        with peer.start(ground.folders["run"]) as server:
            server.qmp("nbd-server-start", addr={
                "type": "unix", "data": {"path": server.socket}})
            start = time.monotonic()
            export(server, "deep", image)
            result = {"open_ms": (time.monotonic() - start) * 1e3}
            cold = ground.load(server, export="deep", count=2000,
                               seconds=1 if ground.quick else 30)
            result.update(cold_iops=cold["iops"], cold_p99_us=cold["p99_us"])
            before = measure(ground, server, "deep")
            result.update(before)
            result["private_mib"] = server.private_bytes() / MIB
            if depth > 1:
                export(server, "flat", flat)
                beside = sum(measure(ground, server, "flat")["iops"]
                             for _ in range(2)) / 2
                after = measure(ground, server, "deep")
                result["iops"] = (before["iops"] + after["iops"]) / 2
                result["depth1_iops"] = beside
                result["of_depth1"] = result["iops"] / beside
        return result

    def end(ground):
        for d in {depth, 1}:
            ground.drop(ground.path("tmpfs", f"chain{d}-{size // GIB}"))

    of = f"{size // GIB} GiB" if size < 1024 * GIB else \
        f"{size // (1024 * GIB)} TiB"
    layers = "1 layer" if depth == 1 else f"{depth:,} layers"
    return Case(f"read 4k, depth 32, {layers}, {of}, tmpfs", ["tmpfs"], peers,
                sample, bars, chart="iops", end=end)


def fsync_all(folder, paths):
    for path in [*paths, folder]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def clones(fs, n, bars, fsync=False):
    def sample(ground, peer, first):
        template = ground.full(fs, "qcow2")
        folder = ground.path(fs, "clones")
        remove(folder)
        os.mkdir(folder)
        paths = [f"{folder}/{i}.qcow2" for i in range(n)]
        if peer is None:
            start = time.monotonic()
            for p in paths:
                sh("qemu-img", "create", "-q", "-f", "qcow2", "-b", template,
                   "-F", "qcow2", p)
            if fsync:
                fsync_all(folder, paths)
            seconds = time.monotonic() - start
        else:
            with peer.start(ground.folders["run"]) as server:
                start = time.monotonic()
                make_clones(server.qmp, template, paths)
                if fsync:
                    fsync_all(folder, paths)
                seconds = time.monotonic() - start
        sh("qemu-img", "check", "-q", paths[-1])
        if first:
            if backing_of(paths[-1], "qcow2") != template:
                raise RuntimeError(f"{paths[-1]} is no clone of {template}")
            must_be_alike("qcow2", paths[-1], template, "qcow2")
        on_disk = sum(os.stat(p).st_blocks * 512 for p in paths) / n
        shutil.rmtree(folder)
        return {"clones_s": n / seconds, "kib_each": on_disk / 1024}
    return Case(f"clones of one template, {fs}{', fsync' if fsync else ''}",
                [fs], DAEMONS + ["qemu-img"], sample, bars, chart="clones_s")


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
    jobs_must_be_done(qmp, 2 * len(ids))
    step([("blockdev-del", {"node-name": f"n{i}"}) for i in ids])


def jobs_must_be_done(qmp, n):
    jobs = qmp("query-jobs")
    for j in jobs:
        if "error" in j:
            raise RuntimeError(j["error"])
        if j["status"] != "concluded" or \
                j["current-progress"] != j["total-progress"]:
            raise RuntimeError(f"job {j['id']} did not come to its end")
    if len(jobs) != n:
        raise RuntimeError(f"{len(jobs)} jobs instead of {n}")
