#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The model test of the live operations over real files: chains that qemu-img
made, guests that verify over NBD, operations by QMP, some two at once, which
are paused, slowed, cancelled and completed at random moments.  After each step
qemu-img check and compare judge the disk against the model.  (sim/model drives
the same operations by the ten thousand; this one has qemu-img as its judge.)

model.py SLUICED

MODEL_SEEDS: how many seeds, or FIRST-LAST.
"""
import json
import os
import random
import sys
import threading
import time

from harness import Daemon, Nbd, QmpError, main, nbd_server, need, run

SLUICED = os.path.abspath(sys.argv[1])
MIB = 1 << 20
SIZE_MAX = 12 * MIB
STEPS = 5
# The second: a switch makes the source a backing file, and a stream fills it.
# The last: a base that cannot grow without showing what lies below it.
REFUSED = ("is busy", "would be written to while another node",
           "than its own backing file")

need("qemu-img", "qemu-io")


class Guest(threading.Thread):
    """Reads, writes, zeroes and discards in its part of the disk, alone there,
    so that it knows each byte."""

    def __init__(self, model, seed, start, end):
        super().__init__()
        self.model, self.rng = model, random.Random(seed)
        self.first, self.end = start, end
        self.stopped = threading.Event()
        self.error = None
        self.requests = 0

    def request(self, nbd):
        length = self.rng.choice((512, 4096, 4096, 20480, 65536, 200704))
        off = self.rng.randrange(self.first, self.end - length) // 512 * 512
        what = self.rng.randrange(10)
        end = off + length
        if what < 4:
            data = self.rng.randbytes(16) * (length // 16)
            nbd.write(off, data)
            self.model[off:end] = data
        elif what == 4:
            nbd.do(nbd.ZERO, off, length)
            self.model[off:end] = bytes(length)
        elif what == 5:
            nbd.do(nbd.TRIM, off, length)
            data = nbd.read(off, length)  # each sector is as before, or zero
            for i in range(0, length, 512):
                got = data[i:i + 512]
                assert (got == self.model[off + i:off + i + 512]
                        or not any(got)), f"trim at {off + i}"
            self.model[off:end] = data
        elif what == 6:
            nbd.flush()
        else:
            assert nbd.read(off, length) == self.model[off:end], \
                f"wrong data in {length} bytes at {off}"

    def run(self):
        try:
            with Nbd("nbd.sock", "a") as nbd:
                while not self.stopped.is_set():
                    self.request(nbd)
                    self.requests += 1
                nbd.flush()
        except Exception as e:
            self.error = e


class Job:
    """What the seed does to one job."""

    def __init__(self, name, rng, can_complete, leaves):
        self.name, self.rng, self.leaves = name, rng, leaves
        self.target = self.size = None  # a mirror's, a commit's
        self.ending = rng.choice(("complete", "complete", "cancel",
                                  "stop" if can_complete else "complete"))
        self.can_complete = can_complete
        self.verbs = rng.randrange(6)
        self.end_at = time.monotonic() + rng.random() * 0.1
        self.asked = False


class World:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.seed = seed
        self.formats = {}  # of each file
        self.counts = {}
        self.jobs = {}
        self.guests = []

    def count(self, name, outcome):
        key = (name, outcome)
        self.counts[key] = self.counts.get(key, 0) + 1

    # Images.

    def create(self, fmt, size, backing=None):
        name = f"f{len(self.formats)}"
        options = []
        if fmt == "qcow2":
            options = ["-o", "cluster_size=%d,compat=%s" % (
                512 << self.rng.randrange(2, 8),
                "0.10" if backing and self.rng.random() < 0.3 else "1.1")]
        if backing:
            options += ["-b", backing, "-F", self.formats[backing]]
        run("qemu-img", "create", "-q", "-f", fmt, *options, name, str(size))
        self.formats[name] = fmt
        return name

    def fill(self, name, size):
        """Aligned writes only: QEMU's QED loses part of unaligned zeroes."""
        args = []
        for _ in range(self.rng.randrange(1, 6)):
            off = self.rng.randrange(0, size - MIB) // 65536 * 65536
            args += ["-c", "write -q %s %d %d" % (
                self.rng.choice(("-z", "-P 17", "-P 34", "-P 51")), off,
                self.rng.randrange(1, 16) * 65536)]
        run("qemu-io", "-f", self.formats[name], *args, name)

    def definition(self, i):
        name = f"f{i}"
        return {"driver": self.formats[name], "node-name": f"n{i}",
                "discard": self.rng.choice(("unmap", "ignore")),
                "detect-zeroes": "off",
                "file": {"driver": "file", "filename": name,
                         "discard": "unmap"}}

    def make_chain(self):
        size = self.rng.randrange(4 * MIB, 8 * MIB) // 65536 * 65536
        top = self.create(self.rng.choice(("raw", "qcow2", "qed")), size)
        self.fill(top, size)
        definition = self.definition(0)
        for i in range(1, self.rng.randrange(1, 4)):
            if self.rng.random() < 0.3:
                size = self.rng.randrange(4 * MIB, 8 * MIB) // 65536 * 65536
            top = self.create(self.rng.choice(("qcow2", "qcow2", "qed")), size,
                              top)
            self.fill(top, size)
            definition = {**self.definition(i), "backing": definition}
        run("qemu-img", "convert", "-f", self.formats[top], "-O", "raw", top,
            "converted")
        with open("converted", "rb") as f:
            self.model = bytearray(f.read())
        return definition

    # What the graph is.

    def head(self):
        return self.qmp.cmd("query-block-exports")[0]["node-name"]

    def nodes(self):
        return {n["node-name"]: n
                for n in self.qmp.cmd("query-named-block-nodes")}

    def chain(self):
        """The files from the head down, as the graph has them."""
        image, files = self.nodes()[self.head()]["image"], []
        while image:
            files.append(os.path.basename(image["filename"]))
            image = image.get("backing-image")
        return files

    # Guests.

    def start_guests(self):
        half = len(self.model) // 2
        self.guests = [
            Guest(self.model, self.rng.random(), 0, half),
            Guest(self.model, self.rng.random(), half, len(self.model))]
        for guest in self.guests:
            guest.start()

    def stop_guests(self):
        for guest in self.guests:
            guest.stopped.set()
        for guest in self.guests:
            guest.join()
            if guest.error:
                raise guest.error
        self.guests = []

    # Judging.

    def check(self, name, *options):
        """While it is in use, clusters can wait for their release.  QED has
        no list of free ones: it keeps those in the middle as leaks."""
        fmt = self.formats[name]
        if fmt != "raw":
            run("qemu-img", "check", "-q", *options, "-f", fmt, name,
                ok=(0, 3) if options or fmt == "qed" else (0,))

    def virtual_size(self, name, *options):
        return json.loads(run("qemu-img", "info", *options, "-f",
                              self.formats[name], "--output=json",
                              name)[1])["virtual-size"]

    def compare(self, name, size, *options):
        with open("model", "wb") as f:
            f.write(self.model[:size])
        fmt = self.formats[name]
        assert self.virtual_size(name, *options) == size, name
        run("qemu-img", "compare", *options, "-f", fmt, "-F", "raw", name,
            "model")

    def settle(self):
        """Guests stand still; what is on disk is what they saw."""
        self.stop_guests()
        with Nbd("nbd.sock", "a") as nbd:
            nbd.flush()
            assert nbd.size == len(self.model), (nbd.size, len(self.model))
            for off in range(0, nbd.size, MIB):
                n = min(MIB, nbd.size - off)
                assert nbd.read(off, n) == self.model[off:off + n], \
                    f"wrong data behind {off}"
        files = self.chain()
        for name in files:
            self.check(name, "-U")
        self.compare(files[0], len(self.model), "-U")
        self.tidy()

    def judge_copy(self, name, size):
        """What a job was told to leave: a copy of the disk as of then."""
        if name not in self.chain():
            self.qmp.cmd("blockdev-del", node_name=f"n{name[1:]}")
            self.check(name)
            self.compare(name, size)
            return
        # A commit's base: what it has behind the disk's end, nobody saw.
        self.check(name, "-U")
        end = self.virtual_size(name, "-U")
        assert end >= size, (name, end, size)
        run("qemu-img", "convert", "-U", "-f", self.formats[name], "-O", "raw",
            name, "converted")
        with open("converted", "rb") as f:
            data = f.read()
        assert data[:size] == self.model[:size] and not any(data[size:]), name

    def tidy(self):
        """Closes what is not used any more, whatever the order."""
        used = {f"n{f[1:]}" for f in self.chain()}
        for _ in range(3):
            for name in self.nodes():
                if name.startswith("n") and name not in used:
                    try:
                        self.qmp.cmd("blockdev-del", node_name=name)
                    except QmpError:
                        pass  # a layer of another one that still goes
        left = {n for n in self.nodes() if n.startswith("n")} - used
        assert not left, left

    # Operations; each returns a Job, or None where it is done.

    def add_target(self, formats):
        size = len(self.model)
        old = formats == "any" and self.rng.random() < 0.3
        name = self.create(self.rng.choice(
            ("raw", "qcow2", "qcow2", "qed") if formats == "any"
            else ("qcow2", "qcow2", "qed")), size)
        if old:
            self.fill(name, size)
        i = int(name[1:])
        definition = self.definition(i)
        if self.formats[name] != "raw":
            definition["backing"] = None
        self.qmp.cmd("blockdev-add", **definition)
        return f"n{i}"

    def speed(self):
        return self.rng.choice((0, 2 * MIB, 8 * MIB, 32 * MIB))

    def stream(self, jid):
        files = self.chain()
        base = self.rng.choice([None] + files[1:])
        args = {"base_node": f"n{base[1:]}"} if base else {}
        self.qmp.cmd("block-stream", job_id=jid, device=self.head(),
                     speed=self.speed(), **args)
        return Job("stream", self.rng, False, "filled")

    def copy(self, jid, name, formats, can_complete, leaves, **args):
        target = self.add_target(formats)
        self.qmp.cmd("block-copy", job_id=jid, device=self.head(),
                     target=target, speed=self.speed(), **args)
        job = Job(name, self.rng, can_complete, leaves)
        job.target, job.size = f"f{target[1:]}", len(self.model)
        return job

    def pre_copy(self, jid):
        return self.copy(jid, "pre-copy", "any", False, "switched")

    def post_copy(self, jid):
        return self.copy(jid, "post-copy", "overlay", False, "switched",
                         mode="post-copy")

    def hybrid(self, jid):
        return self.copy(jid, "hybrid", "overlay", True, "switched",
                         mode="hybrid")

    def mirror(self, jid):
        target = self.add_target("any")
        self.qmp.cmd("blockdev-mirror", job_id=jid, device=self.head(),
                     target=target, sync="full", speed=self.speed(),
                     copy_mode=self.rng.choice(("background",
                                                "write-blocking")))
        job = Job("mirror", self.rng, True, "switched")
        job.target, job.size = f"f{target[1:]}", len(self.model)
        return job

    def commit(self, jid, name, top, base):
        """Of layers by their depth below the head; 0: the head itself."""
        files = self.chain()
        args = {"top_node": f"n{files[top][1:]}"} if top else {}
        self.qmp.cmd("block-commit", job_id=jid, device=self.head(),
                     base_node=f"n{files[base][1:]}", speed=self.speed(),
                     **args)
        job = Job(name, self.rng, not top, "below" if top else "switched")
        if not top:
            job.target, job.size = files[base], len(self.model)
        return job

    def at_least(self, depth, jid):
        """The chain's depth, made up with snapshots."""
        for i in range(len(self.chain()), depth):
            self.snapshot(jid)
        return len(self.chain())

    def commit_disk(self, jid):
        depth = self.at_least(2, jid)
        return self.commit(jid, "commit-disk", 0, self.rng.randrange(1, depth))

    def commit_below(self, jid):
        depth = self.at_least(3, jid)
        top = self.rng.randrange(1, depth - 1)
        return self.commit(jid, "commit-below", top,
                           self.rng.randrange(top + 1, depth))

    def snapshot(self, jid):
        i = len(self.formats)
        fmt = self.rng.choice(("qcow2", "qcow2", "qed"))
        self.formats[f"f{i}"] = fmt
        self.qmp.cmd("blockdev-snapshot-sync", node_name=self.head(),
                     snapshot_file=f"f{i}", snapshot_node_name=f"n{i}",
                     format=fmt)

    def resize(self, jid):
        size = len(self.model) + self.rng.randrange(1, 8) * 65536
        if size <= SIZE_MAX:
            self.qmp.cmd("block_resize", node_name=self.head(), size=size)
            # Guests keep to what they know of; the rest reads zero.
            self.model.extend(bytes(size - len(self.model)))

    TABLE = (stream, pre_copy, post_copy, hybrid, mirror, commit_disk,
             commit_below, snapshot, resize)

    def begin(self, kind, jid):
        name = kind.__name__.replace("_", "-")
        try:
            job = kind(self, jid)
        except QmpError as e:
            assert any(text in e.desc for text in REFUSED), e
            self.count(name, "refused")
            return
        if job:
            self.jobs[jid] = job
        else:
            self.count(name, "completed")

    def verb(self, command, **arguments):
        """One that the job's status does not allow is no matter."""
        try:
            self.qmp.cmd(command, **arguments)
            return True
        except QmpError:
            return False

    def ask_for_the_end(self, jid, job, status):
        if job.ending == "cancel":
            job.asked = self.verb("block-job-cancel", device=jid, force=True)
        elif job.can_complete and status == "ready":
            if job.ending == "stop":
                self.stop_guests()  # the copy is of now
                job.asked = self.verb("block-job-cancel", device=jid)
            else:
                job.asked = self.verb("job-complete", id=jid)

    def disturb(self, jid, job, status):
        if job.verbs:
            job.verbs -= 1
            kind = self.rng.randrange(3)
            if kind == 0:
                self.verb("job-pause", id=jid)
            elif kind == 1:
                self.verb("job-resume", id=jid)
            else:
                self.verb("block-job-set-speed", device=jid,
                          speed=self.speed())
        else:
            self.verb("job-resume", id=jid)
            if job.asked or job.ending != "cancel":
                self.verb("block-job-set-speed", device=jid, speed=0)

    def take_events(self):
        """What has become of the jobs that have ended."""
        for event in self.qmp.events:
            jid = event["data"].get("device")
            job = self.jobs.get(jid)
            if not job or event["event"] not in ("BLOCK_JOB_COMPLETED",
                                                 "BLOCK_JOB_CANCELLED"):
                continue
            error = event["data"].get("error")
            if event["event"] == "BLOCK_JOB_CANCELLED":
                self.count(job.name, "cancelled")
            elif error:
                assert any(text in error for text in REFUSED), event
                self.count(job.name, "refused")
            else:
                self.count(job.name, "completed")
                if job.name == "commit-disk" and job.ending != "stop":
                    self.outgrown.append(job.target)
                if job.ending == "stop" and job.asked:
                    self.copies.append((job.target, job.size))
            job.leaves = "ended"
        self.qmp.events.clear()

    def drive(self):
        while True:
            status = {j["id"]: j["status"] for j in self.qmp.cmd("query-jobs")}
            self.take_events()
            for jid in [j for j in self.jobs if j not in status]:
                assert self.jobs[jid].leaves == "ended", jid
                del self.jobs[jid]
            if not self.jobs:
                return
            for jid, job in self.jobs.items():
                if not job.asked and time.monotonic() > job.end_at:
                    self.ask_for_the_end(jid, job, status[jid])
                self.disturb(jid, job, status[jid])
            time.sleep(self.rng.random() * 0.02)

    def step(self, n):
        self.copies, self.outgrown = [], []
        kinds = self.rng.sample(self.TABLE, self.rng.choice((1, 1, 2)))
        self.start_guests()
        for i, kind in enumerate(kinds):
            time.sleep(self.rng.random() * 0.03)
            self.begin(kind, f"j{n}{'ab'[i]}")
        self.drive()
        self.stop_guests()
        for name, size in self.copies:  # before the disk changes again
            self.judge_copy(name, size)
        for name in self.outgrown:  # a base can be longer; nobody saw that
            size = max(self.virtual_size(name, "-U"), len(self.model))
            self.model.extend(bytes(size - len(self.model)))
        self.settle()
        return [kind.__name__ for kind in kinds]

    def run(self):
        definition = self.make_chain()
        steps = []
        with Daemon(SLUICED, *nbd_server(), "--blockdev",
                    json.dumps(definition), "--export",
                    f"nbd,id=e,node-name={definition['node-name']},name=a,"
                    "writable=on") as d:
            self.qmp = d.qmp()
            try:
                for n in range(STEPS):
                    steps.append(self.step(n))
            except BaseException:
                print(f"# seed {self.seed}, after {steps}: "
                      f"{sorted(self.formats.items())}")
                for guest in self.guests:
                    guest.stopped.set()
                raise
            files = self.chain()
            d.stop()
        for name in files:
            self.check(name)
        self.compare(files[0], len(self.model))


TOTALS = {}
MORE_SEEDS = 20


def run_seed(seed):
    world = World(seed)
    world.run()
    for key, n in world.counts.items():
        TOTALS[key] = TOTALS.get(key, 0) + n


def seed_test(seed):
    return f"seed {seed} reads as its model", lambda: run_seed(seed)


def unmet():
    names = [kind.__name__.replace("_", "-") for kind in World.TABLE]
    return [name for name in names if (name, "completed") not in TOTALS]


def every_operation_has_completed():
    """When a job is told to end is chance: some may need a few seeds more."""
    for seed in range(max(seeds()) + 1, max(seeds()) + 1 + MORE_SEEDS):
        if not unmet():
            break
        run_seed(seed)
    for (name, outcome), n in sorted(TOTALS.items()):
        print(f"# {name} {outcome}: {n}")
    assert not unmet(), unmet()
    assert any(outcome == "cancelled" for _, outcome in TOTALS)


def seeds():
    text = os.environ.get("MODEL_SEEDS", "10")
    first, _, last = text.partition("-")
    return range(int(first), int(last) + 1) if last else \
        range(1, int(first) + 1)


if __name__ == "__main__":
    main([seed_test(seed) for seed in seeds()]
         + [every_operation_has_completed])
