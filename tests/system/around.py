# SPDX-License-Identifier: BSD-3-Clause
"""The commands around the live operations, on disks that are served.

around.py SLUICED
"""
import json
import os
import sys

from harness import (Daemon, Nbd, NbdError, QmpError, main, nbd_server, need,
                     refused, run)

SLUICED = os.path.abspath(sys.argv[1])
MIB = 1 << 20

need("qemu-img")


def image(name, *options, size="4M", kind="qcow2"):
    run("qemu-img", "create", "-q", "-f", kind, *options, name, size)


def info(name):
    return json.loads(run("qemu-img", "info", "-U", "--output=json", name)[1])


def add(q, node, filename, driver="qcow2", **more):
    q.cmd("blockdev-add", driver=driver, node_name=node,
          file={"driver": "file", "filename": filename}, **more)


def export(q, node, name=None, **more):
    q.cmd("block-export-add", type="nbd", id="e-" + node, node_name=node,
          name=name or node, writable=True, **more)


def unexport(q, node):
    q.cmd("block-export-del", id="e-" + node, mode="hard")
    q.wait_event("BLOCK_EXPORT_DELETED")


def nodes(q):
    return {n["node-name"]: n for n in q.cmd("query-named-block-nodes")}


def compare(name, pattern):
    """What the disk @name reads, against {offset: (byte, length)}."""
    for offset, (byte, length) in pattern.items():
        text = run("qemu-io", "-U", "-r", "-c",
                   f"read -P {byte} {offset} {length}", name)[1]
        assert "failed" not in text, text


def a_snapshot_creates_its_overlay():
    os.mkdir("over")
    image("a.qcow2")
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        add(q, "a", "a.qcow2", cache={"direct": False, "no-flush": True},
            discard="unmap")
        export(q, "a")
        guest = Nbd("nbd.sock", "a")
        guest.write(0, b"\1" * 65536)
        for name, kind in (("b.qcow2", "qcow2"), ("over/c.qed", "qed")):
            node = "n" + kind
            q.cmd("blockdev-snapshot-sync", snapshot_file=name, format=kind,
                  node_name=q.cmd("query-block-exports")[0]["node-name"],
                  snapshot_node_name=node)
            assert q.cmd("query-block-exports")[0]["node-name"] == node
        guest.write(65536, b"\2" * 65536)
        guest.flush()
        assert guest.read(0, 65536) == b"\1" * 65536
        top = nodes(q)["nqed"]
        assert top["backing_file_depth"] == 2, top
        assert top["cache"]["no-flush"] is True, top
        assert d.stop() == 0
    # One folder: by the last part.  Another one: in full.
    assert info("b.qcow2")["backing-filename"] == "a.qcow2"
    assert info("b.qcow2")["backing-filename-format"] == "qcow2"
    assert info("over/c.qed")["backing-filename"] == os.path.abspath("b.qcow2")
    assert info("over/c.qed")["virtual-size"] == 4 * MIB
    compare("over/c.qed", {0: (1, 65536), 65536: (2, 65536), 131072: (0, 65536)})
    compare("b.qcow2", {0: (1, 65536), 65536: (0, 65536)})


def an_existing_overlay_is_used_as_it_is():
    image("a.qcow2")
    image("b.qcow2")
    before = open("b.qcow2", "rb").read()
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        add(q, "a", "a.qcow2")
        export(q, "a")
        q.cmd("blockdev-snapshot-sync", node_name="a", snapshot_file="b.qcow2",
              snapshot_node_name="b", mode="existing")
        assert nodes(q)["b"]["backing_file_depth"] == 1
        assert d.stop() == 0
    assert open("b.qcow2", "rb").read() == before


def what_fails_leaves_no_file():
    image("a.raw", kind="raw")
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        add(q, "a", "a.raw", driver="raw", offset=65536)
        q.cmd("blockdev-add", driver="null-co", node_name="n")
        add(q, "r", "a.raw", driver="raw", read_only=True,
            **{"force-share": True})
        refused(q, "no plain image file", "blockdev-snapshot-sync",
                node_name="a", snapshot_file="b.qcow2", snapshot_node_name="b")
        refused(q, "no plain image file", "blockdev-snapshot-sync",
                node_name="n", snapshot_file="b.qcow2", snapshot_node_name="b")
        refused(q, "Invalid node-name", "blockdev-snapshot-sync",
                node_name="r", snapshot_file="b.qcow2", snapshot_node_name="1")
        assert not os.path.exists("b.qcow2")
        assert d.stop() == 0


def a_header_is_rewritten_without_a_change_of_the_graph():
    os.mkdir("sub")
    image("base.qcow2")
    image("sub/base.raw", kind="raw")
    image("a.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    image("b.qed", "-b", "base.qcow2", "-F", "qcow2", kind="qed")
    image("c.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        add(q, "base", "base.qcow2")
        add(q, "a", "a.qcow2", backing={
            "driver": "raw", "node-name": "under",
            "file": {"driver": "file", "filename": "sub/base.raw"}})
        add(q, "b", "b.qed", driver="qed", backing="base")
        add(q, "c", "c.qcow2", backing="base")
        export(q, "a")
        before = nodes(q)["a"]["children"]
        q.cmd("change-backing-file", device="a", image_node_name="a",
              backing_file="sub/base.raw")
        q.cmd("change-backing-file", device="b", image_node_name="b",
              backing_file="./base.qcow2")
        q.cmd("change-backing-file", device="c", image_node_name="c",
              backing_file="")
        assert nodes(q)["a"]["children"] == before
        assert nodes(q)["a"]["backing_file"] == "sub/base.raw"
        refused(q, "not allowing backing file change", "change-backing-file",
                device="a", image_node_name="under", backing_file="x")
        refused(q, "Could not change backing file to 'xx", "change-backing-file",
                device="a", image_node_name="a", backing_file="x" * 2000)
        q.cmd("block-stream", device="a", job_id="j", speed=1)
        refused(q, "by block job: stream (job 'j' uses it)", "change-backing-file",
                device="a", image_node_name="a", backing_file="x")
        assert d.stop() == 0
    # The format that is stated is the one that is open below.
    assert info("a.qcow2")["backing-filename"] == "sub/base.raw"
    assert info("a.qcow2")["backing-filename-format"] == "raw"
    assert "backing-filename" not in info("c.qcow2")
    assert info("b.qed")["backing-filename"] == "./base.qcow2"
    run("qemu-img", "check", "-q", "a.qcow2")


def nodes_are_reopened_under_a_guest():
    image("base.qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 1M", "base.qcow2")
    image("other.qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 6 0 1M", "other.qcow2")
    image("a.qcow2", "-b", "base.qcow2", "-F", "qcow2")

    def options(name, **more):
        return {"driver": "qcow2", "node-name": name, **more, "file": {
            "driver": "file", "filename": f"{name}.qcow2"}}

    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        for o in (options("base", **{"read-only": True}),
                  options("other", **{"read-only": True}),
                  options("a", backing="base")):
            assert "return" in q.raw("blockdev-add", o)
        export(q, "a")
        with Nbd("nbd.sock", "a") as nbd:
            assert nbd.read(0, 512) == bytes([5]) * 512
            q.cmd("blockdev-reopen", options=[options("a", backing="other")])
            assert nbd.read(0, 512) == bytes([6]) * 512
            nbd.write(0, bytes([9]) * 512)
            # A guest writes to it: it cannot be read-only.
            refused(q, "writes to it", "blockdev-reopen",
                    options=[options("a", backing="other",
                                     **{"read-only": True})])
            # All or nothing: the first one is changed back.
            refused(q, "writes to it", "blockdev-reopen", options=[
                options("base"),
                options("a", backing="base", **{"read-only": True})])
            assert nbd.read(512, 512) == bytes([6]) * 512
            assert nodes(q)["base"]["ro"]
            before = nodes(q)
            for text, bad in (
                    ("writes to it", options("a", backing="other", **{
                        "read-only": True, "detect-zeroes": "on"})),
                    ("without setting discard", options(
                        "a", backing="base", **{"detect-zeroes": "unmap"})),
                    ("would create a cycle", options("a", backing="a")),
                    ("backing is missing for 'a'", options("a"))):
                refused(q, text, "blockdev-reopen", options=[
                    options("base", **{"read-only": True, "discard": "unmap",
                                       "detect-zeroes": "unmap"}),
                    options("other", **{"detect-zeroes": "on"}), bad])
                assert nodes(q) == before, text
            # What was kept as given is what is asked for again.
            q.cmd("blockdev-snapshot-sync", node_name="base",
                  snapshot_file="s.qcow2", snapshot_node_name="s")
            assert nodes(q)["s"]["detect_zeroes"] == "off"
        q.cmd("blockdev-del", node_name="s")
        q.cmd("blockdev-reopen", options=[options("base")])
        assert not nodes(q)["base"]["ro"]
        export(q, "base")
        with Nbd("nbd.sock", "base") as nbd:
            nbd.write(0, bytes([7]) * 512)
        refused(q, "Cannot change the option 'driver'", "blockdev-reopen",
                options=[{**options("a", backing="other"), "file": {
                    "driver": "raw", "file": {
                        "driver": "file", "filename": "a.qcow2"}}}])
        assert d.stop() == 0
    for name in ("a", "base", "other"):
        run("qemu-img", "check", "-q", f"{name}.qcow2")


def a_job_keeps_its_node_writable():
    """Nobody else writes to it, and yet it cannot become read-only."""
    image("base.qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 3M", "base.qcow2")
    for read_only in (False, True):
        image("a.qcow2", "-b", "base.qcow2", "-F", "qcow2")
        image("copy.qcow2")
        with Daemon(SLUICED, *nbd_server()) as d:
            q = d.qmp()
            add(q, "base", "base.qcow2", read_only=True)
            add(q, "a", "a.qcow2", backing="base", read_only=read_only)
            add(q, "copy", "copy.qcow2", backing=None)

            def reopen(**more):
                q.cmd("blockdev-reopen", options=[{
                    "driver": "qcow2", "node-name": "a", "read-only": True,
                    "file": {"driver": "file", "filename": "a.qcow2"},
                    **more}])

            def cannot():
                def node():  # but for how full it is: the job goes on
                    return {k: v for k, v in nodes(q)["a"].items()
                            if k != "image"}

                was = node()
                try:
                    reopen(backing="base")
                except QmpError as e:
                    assert "'a' is busy" in e.desc, e.desc
                else:
                    raise AssertionError("read-only under a job")
                assert node() == was and not was["ro"], was

            if not read_only:
                q.cmd("blockdev-mirror", job_id="m", device="a",
                      target="copy", sync="full", speed=1)
                cannot()
                q.cmd("block-job-set-speed", device="m", speed=0)
                q.wait_event("BLOCK_JOB_READY")
                cannot()
                # It is what it was: a guest may still come.
                export(q, "a")
                with Nbd("nbd.sock", "a") as nbd:
                    nbd.write(MIB, b"\7" * 65536)
                unexport(q, "a")
                cannot()
                q.cmd("block-job-cancel", device="m")
                end = q.wait_event("BLOCK_JOB_COMPLETED")["data"]
                assert "error" not in end, end
                q.wait_event("JOB_STATUS_CHANGE", id="m", status="null")
                reopen(backing="base")
                assert nodes(q)["a"]["ro"]
                q.cmd("blockdev-reopen", options=[{
                    "driver": "qcow2", "node-name": "a", "backing": "base",
                    "file": {"driver": "file", "filename": "a.qcow2"}}])
            q.cmd("block-stream", job_id="s", device="a", speed=1)
            cannot()
            q.cmd("block-job-set-speed", device="s", speed=0)
            end = q.wait_event("BLOCK_JOB_COMPLETED")["data"]
            assert "error" not in end, end
            q.wait_event("JOB_STATUS_CHANGE", id="s", status="null")
            reopen(backing=None)
            assert nodes(q)["a"]["ro"]
            assert d.stop() == 0
        run("qemu-img", "check", "-q", "a.qcow2")
        assert "backing-filename" not in info("a.qcow2")
        want = {0: (5, MIB), MIB: (5 if read_only else 7, 65536),
                MIB + 65536: (5, 2 * MIB - 65536), 3 * MIB: (0, MIB)}
        compare("a.qcow2", want)
        if not read_only:
            run("qemu-img", "check", "-q", "copy.qcow2")
            compare("copy.qcow2", want)
        os.unlink("a.qcow2")


def a_header_of_a_layer_below_is_rewritten():
    image("base.qcow2")
    image("mid.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    image("a.qcow2", "-b", "mid.qcow2", "-F", "qcow2")
    os.symlink("base.qcow2", "alias")
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        add(q, "a", "a.qcow2")
        export(q, "a")
        mid = next(n for n, v in nodes(q).items()
                   if v["file"] == "mid.qcow2" and v["drv"] == "qcow2")
        q.cmd("change-backing-file", device="a", image_node_name=mid,
              backing_file="alias")
        assert d.stop() == 0
    assert info("mid.qcow2")["backing-filename"] == "alias"


def denied(operation, *arguments):
    try:
        operation(*arguments)
    except NbdError as e:
        assert e.code == 1, e
        return
    raise AssertionError("an inactive node answered")


def an_export_stays_while_its_node_is_handed_over():
    image("base.qcow2")
    image("a.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        add(q, "a", "a.qcow2")
        export(q, "a", allow_inactive=True)
        with Nbd("nbd.sock", "a") as nbd:
            for i in range(3):
                nbd.write(i << 16, bytes([5 + i]) * 65536)
                q.cmd("blockdev-set-active", node_name="a", active=False)
                denied(nbd.read, 0, 512)
                denied(nbd.write, 0, bytes(512))
                # All of it is there, and nobody else holds it.
                run("qemu-io", "-f", "qcow2", "-c",
                    f"read -P {5 + i} {i << 16} 64k", "-c",
                    f"write -P {15 + i} {i << 16} 512", "a.qcow2")
                q.cmd("blockdev-set-active", node_name="a", active=True)
                assert nbd.read(i << 16, 513) == (bytes([15 + i]) * 512 +
                                                  bytes([5 + i]))
        # Where another one has it by then, it stays inactive, and says why.
        q.cmd("blockdev-set-active", node_name="a", active=False)
        with Daemon(SLUICED, *nbd_server("other.sock")) as other:
            o = other.qmp()
            add(o, "a", "a.qcow2")
            refused(q, "lock", "blockdev-set-active", node_name="a",
                    active=True)
            assert not nodes(q)["a"]["active"]
            assert other.stop() == 0
        # What is exported without that is to be active.
        unexport(q, "a")
        export(q, "a")
        assert nodes(q)["a"]["active"]
        refused(q, "uses it", "blockdev-set-active", node_name="a",
                active=False)
        assert d.stop() == 0
    assert not any("BLOCK_IO_ERROR" in str(e) for e in q.events), q.events
    run("qemu-img", "check", "-q", "a.qcow2")


def a_node_may_begin_inactive():
    """As the destination of a migration on shared storage needs it."""
    image("base.qcow2")
    image("a.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    with Daemon(SLUICED, *nbd_server()) as src, \
            Daemon(SLUICED, *nbd_server("other.sock")) as dst:
        s, q = src.qmp(), dst.qmp()
        add(s, "a", "a.qcow2")
        export(s, "a", allow_inactive=True)
        # Nodes of their own, as libvirt makes them, and all in one.
        q.cmd("blockdev-add", driver="file", node_name="f",
              filename="a.qcow2", active=False)
        q.cmd("blockdev-add", driver="qcow2", node_name="b", active=False,
              backing=None, file={"driver": "file", "filename":
                                  "base.qcow2"})
        q.cmd("blockdev-add", driver="qcow2", node_name="a", file="f",
              backing="b", active=False)
        q.cmd("blockdev-add", driver="qcow2", node_name="whole",
              active=False, file={"driver": "file", "filename": "a.qcow2"})
        have = nodes(q)
        assert not any(n["active"] for n in have.values()), have
        assert have["a"]["image"]["virtual-size"] == nodes(s)["a"]["image"][
            "virtual-size"] and not have["a"]["ro"], have["a"]
        assert "base.qcow2" in str(have["whole"]["backing_file"]), have
        refused(q, "can't be a file child of active", "blockdev-add",
                driver="qcow2", node_name="n", backing=None,
                file={"driver": "file", "filename": "base.qcow2",
                      "node-name": "nf", "active": False})
        refused(q, "is inactive", "blockdev-add", driver="raw", node_name="n",
                file="f")
        export(q, "a", allow_inactive=True)
        with Nbd("nbd.sock", "a") as old, Nbd("other.sock", "a") as new:
            old.write(65536, b"x" * 512)
            denied(new.read, 65536, 512)
            refused(q, "lock", "blockdev-set-active", node_name="a",
                    active=True)
            denied(new.read, 65536, 512)
            s.cmd("blockdev-set-active", active=False)
            q.cmd("blockdev-set-active", node_name="a", active=True)
            denied(old.read, 65536, 512)
            assert new.read(65536, 512) == b"x" * 512
            new.write(0, b"y" * 512)
            refused(s, "lock", "blockdev-set-active", active=True)
            # And back.
            q.cmd("blockdev-set-active", node_name="a", active=False)
            s.cmd("blockdev-set-active", active=True)
            assert old.read(0, 512) == b"y" * 512
        assert dst.stop() == 0 and src.stop() == 0
    run("qemu-img", "check", "-q", "a.qcow2")


def a_node_is_handed_over_and_taken_back():
    image("base.qcow2")
    image("a.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        add(q, "a", "a.qcow2", discard="unmap")
        export(q, "a")
        with Nbd("nbd.sock", "a") as nbd:
            nbd.write(0, bytes([5]) * 65536)
            refused(q, "uses it", "blockdev-set-active", node_name="a",
                    active=False)
        unexport(q, "a")
        q.cmd("blockdev-set-active", node_name="a", active=False)
        assert not nodes(q)["a"]["active"]
        # Another program finds all of it, may write, and grows it.
        run("qemu-img", "check", "-q", "a.qcow2")
        run("qemu-io", "-f", "qcow2", "-c", "read -P 5 0 64k", "-c",
            "write -P 6 64k 64k", "a.qcow2")
        run("qemu-img", "resize", "-q", "a.qcow2", "8M")
        for name, arguments in (
                ("block-stream", {"device": "a", "job_id": "j"}),
                ("query-stream-plan", {"device": "a"}),
                ("block_resize", {"node_name": "a", "size": 1 << 20}),
                ("blockdev-snapshot-sync", {
                    "node_name": "a", "snapshot_file": "s.qcow2",
                    "snapshot_node_name": "s"}),
                ("change-backing-file", {
                    "device": "a", "image_node_name": "a",
                    "backing_file": "x"})):
            refused(q, "is inactive", name, **arguments)
        q.cmd("query-named-block-nodes")
        q.cmd("blockdev-set-active", active=True)
        export(q, "a")
        with Nbd("nbd.sock", "a") as nbd:
            assert nbd.size == 8 << 20
            assert nbd.read(0, 512) == bytes([5]) * 512
            assert nbd.read(65536, 512) == bytes([6]) * 512
            nbd.write(1 << 20, bytes([7]) * 512)
        unexport(q, "a")
        # What cannot be opened any more stays inactive, and says why.
        q.cmd("blockdev-set-active", active=False)
        os.rename("a.qcow2", "b.qcow2")
        refused(q, "Could not open", "blockdev-set-active", node_name="a",
                active=True)
        os.rename("b.qcow2", "a.qcow2")
        q.cmd("blockdev-set-active", node_name="a", active=True)
        q.cmd("blockdev-set-active", node_name="a", active=False)
        q.cmd("blockdev-del", node_name="a")
        assert d.stop() == 0
    run("qemu-img", "check", "-q", "a.qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "read -P 7 1M 512", "a.qcow2")


def images_shrink():
    """And show nothing of what they had when they grow again."""
    image("below.raw", kind="raw", size="6M")
    run("qemu-io", "-f", "raw", "-c", "write -P 5 0 6M", "below.raw")
    for kind in "qcow2", "qed":
        image("s", "-b", "below.raw", "-F", "raw", kind=kind, size="6M")
        run("qemu-io", "-f", kind, "-c", "write -P 6 512k 4M", "s")
        with Daemon(SLUICED, *nbd_server()) as d:
            q = d.qmp()
            add(q, "s", "s", driver=kind)
            export(q, "s")
            before = os.stat("s").st_blocks
            q.cmd("block_resize", node_name="s", size=MIB + 512)
            assert Nbd("nbd.sock", "s").size == MIB + 512
            assert d.stop() == 0
        assert os.stat("s").st_blocks < before - 2 * MIB // 512
        # A QED image has no list of what it gave up.
        run("qemu-img", "check", "-q", "-f", kind, "s",
            ok=(0, 3) if kind == "qed" else (0,))
        compare("s", {0: (5, MIB // 2), MIB // 2: (6, MIB // 2 + 512)})
        with Daemon(SLUICED, *nbd_server()) as d:
            q = d.qmp()
            add(q, "s", "s", driver=kind)
            q.cmd("block_resize", node_name="s", size=5 * MIB)
            assert d.stop() == 0
        compare("s", {0: (5, MIB // 2), MIB // 2: (6, MIB // 2 + 512),
                      MIB + 512: (0, 4 * MIB - 512)})


def a_served_disk_changes_its_size():
    image("base.qcow2", size="3M")
    run("qemu-io", "-c", "write -P 9 0 3M", "base.qcow2")
    # The old end lies in the middle of a cluster.
    image("a.qcow2", "-b", "base.qcow2", "-F", "qcow2", size=str(MIB + 512))
    image("r.raw", kind="raw")
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        add(q, "a", "a.qcow2")
        q.cmd("blockdev-add", driver="copy-on-read", node_name="cor", file="a")
        add(q, "r", "r.raw", driver="raw")
        export(q, "cor")
        export(q, "r")
        guest, old = Nbd("nbd.sock", "cor"), Nbd("nbd.sock", "r")
        guest.write(MIB, b"\1" * 512)
        q.cmd("block_resize", node_name="cor", size=4 * MIB)
        assert nodes(q)["a"]["image"]["virtual-size"] == 4 * MIB
        guest = Nbd("nbd.sock", "cor")
        assert guest.size == 4 * MIB
        assert guest.read(MIB, 512) == b"\1" * 512
        assert guest.read(MIB + 512, 3 * MIB - 512) == bytes(3 * MIB - 512)
        assert guest.read(0, MIB) == b"\11" * MIB
        # A disk that shrinks under a client.
        q.cmd("block_resize", node_name="r", size=MIB)
        try:
            old.write(2 * MIB, b"\1" * 512)
        except Exception as e:
            assert "NBD: error" in str(e), e
        else:
            raise AssertionError("written past the end")
        assert os.path.getsize("r.raw") == MIB
        assert Nbd("nbd.sock", "r").size == MIB
        q.cmd("blockdev-snapshot-sync", node_name="a", snapshot_file="b.qcow2",
              snapshot_node_name="b")
        refused(q, "Node 'a' is busy: node 'b', as its backing file",
                "block_resize", node_name="a", size=8 * MIB)
        q.cmd("block_resize", node_name="b", size=8 * MIB)
        assert Nbd("nbd.sock", "cor").size == 8 * MIB
        q.cmd("block-stream", device="b", job_id="j", speed=1)
        refused(q, "job 'j'", "block_resize", node_name="cor", size=9 * MIB)
        assert d.stop() == 0
    run("qemu-img", "check", "-q", "a.qcow2")
    compare("b.qcow2", {0: (9, MIB), MIB: (1, 512), MIB + 512: (0, 7 * MIB - 512)})


def the_graph_shows_who_holds_what():
    image("base.qcow2")
    image("a.qcow2", "-b", "base.qcow2", "-F", "qcow2")
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        add(q, "a", "a.qcow2")
        export(q, "a")
        q.cmd("block-stream", device="a", job_id="j", auto_finalize=False)
        graph = q.cmd("x-debug-query-block-graph")
        nodes_ = {n["id"]: n for n in graph["nodes"]}
        assert len(nodes_) == len(graph["nodes"]) == 6, graph
        by_type = sorted((n["type"], n["name"]) for n in graph["nodes"]
                         if n["type"] != "block-driver")
        assert by_type == [("block-backend", "e-a"), ("block-job", "j")]
        perms = {(nodes_[e["parent"]]["name"], e["name"]):
                 (e["perm"], e["shared-perm"]) for e in graph["edges"]}
        assert len(perms) == len(graph["edges"]) == 5, graph
        assert perms["a", "backing"] == (
            ["consistent-read"], ["consistent-read", "write-unchanged"])
        assert perms["e-a", "root"][0] == ["consistent-read", "write"]
        assert perms["j", "main node"][0] == ["consistent-read",
                                              "write-unchanged"]
        assert "write" not in perms["a", "file"][1]
        assert d.stop() == 0


def sync(node, overlay):
    return {"type": "blockdev-snapshot-sync", "data": {
        "node-name": node, "snapshot-node-name": overlay,
        "snapshot-file": overlay + ".qcow2"}}


def several_disks_are_snapshotted_at_one_instant():
    """A guest writes n to the second disk only after n was written to the
    first: in the snapshots, the first is never behind."""
    image("a.qcow2")
    image("b.qcow2")
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        for name in "ab":
            add(q, name, name + ".qcow2")
            export(q, name)
        first, second = Nbd("nbd.sock", "a"), Nbd("nbd.sock", "b")
        q.send("transaction", {"actions": [sync("a", "a1"), sync("b", "b1")]})
        for n in range(1, 2000):
            first.write(0, n.to_bytes(512, "big"))
            second.write(0, n.to_bytes(512, "big"))
        assert q.answer() == {"return": {}}
        tops = {e["id"]: e["node-name"] for e in q.cmd("query-block-exports")}
        assert tops == {"e-a": "a1", "e-b": "b1"}, tops
        assert int.from_bytes(first.read(0, 512), "big") == 1999
        assert d.stop() == 0
    last = []
    for name in "ab":
        run("qemu-img", "convert", "-O", "raw", name + ".qcow2", name + ".raw")
        with open(name + ".raw", "rb") as f:
            last.append(int.from_bytes(f.read(512), "big"))
    assert last[0] - last[1] in (0, 1), last


def shallow(q):
    """A disk of two layers, and the target of its shallow copy."""
    image("base.qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4M", "base.qcow2")
    for name in ("top.qcow2", "t.qcow2"):
        image(name, "-b", "base.qcow2", "-F", "qcow2")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 2 64k 64k", "-c",
        "write -z 256k 64k", "-c", "write -P 6 2M 1M", "-c",
        "write -z 3M 64k", "top.qcow2")
    add(q, "top", "top.qcow2")
    add(q, "t", "t.qcow2", backing=None)
    add(q, "b", "base.qcow2", read_only=True)
    export(q, "top", "a")


def attach(q):
    q.cmd("transaction", actions=[{
        "type": "blockdev-snapshot", "data": {"node": "b", "overlay": "t"}}])
    assert nodes(q)["t"]["backing_file_depth"] == 1


def a_mirrors_target_gets_its_backing_file(when, **more):
    """As libvirt does it before the switch of a shallow copy."""
    def test():
        with Daemon(SLUICED, *nbd_server()) as d:
            q = d.qmp()
            commands = [e for e in q.cmd("query-qmp-schema")
                        if e["name"] == "blockdev-snapshot"]
            assert commands[0]["features"] == ["allow-write-only-overlay"]
            shallow(q)
            q.cmd("blockdev-mirror", job_id="j", device="top", target="t",
                  sync="top", speed=65536 if when == "early" else 0, **more)
            if when == "early":
                attach(q)
                assert q.cmd("query-jobs")[0]["status"] == "running"
                q.cmd("block-job-set-speed", device="j", speed=0)
            q.wait_event("BLOCK_JOB_READY")
            guest = Nbd("nbd.sock", "a")
            guest.write(512 * 1024 + 512, b"\3" * 4096)
            if when != "early":
                attach(q)
            guest.write(1 << 20, b"\4" * 512)
            guest.do(Nbd.ZERO, 768 * 1024, 65536)
            q.cmd("job-complete", id="j")
            assert "error" not in q.wait_event("BLOCK_JOB_COMPLETED")["data"]
            assert q.cmd("query-block-exports")[0]["node-name"] == "t"
            assert guest.read(0, 65536) == b"\1" * 65536
            assert guest.read(65536, 65536) == b"\2" * 65536
            for off in (256 * 1024, 768 * 1024, 3 * MIB):
                assert guest.read(off, 65536) == bytes(65536)
            guest.write(1536 * 1024, b"\5" * 512)  # on top of the base
            guest.flush()
            assert d.stop() == 0
        assert info("t.qcow2")["backing-filename"] == "base.qcow2"
        compare("t.qcow2", {
            0: (1, 65536), 65536: (2, 65536), 256 * 1024: (0, 65536),
            512 * 1024: (1, 512), 512 * 1024 + 512: (3, 4096),
            768 * 1024: (0, 65536), 832 * 1024: (1, 65536),
            1 << 20: (4, 512), (1 << 20) + 512: (1, 65536),
            1536 * 1024: (5, 512), 1536 * 1024 + 512: (1, 4096),
            2 * MIB: (6, MIB), 3 * MIB: (0, 65536), 3 * MIB + 65536: (1, 65536)})
        compare("base.qcow2", {0: (1, 4 * MIB)})
        # The old top has all that was written before the switch.
        run("qemu-io", "-f", "qcow2", "-c", "write -P 5 1536k 512",
            "top.qcow2")
        run("qemu-img", "compare", "t.qcow2", "top.qcow2")
        run("qemu-img", "check", "-q", "t.qcow2")
    return f"a mirror's target gets its backing file, {when} {more}", test


def a_target_that_is_not_bare_gets_no_backing_file():
    """It holds no zeroes where the backing file has data."""
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        shallow(q)
        image("plain.qcow2")
        add(q, "plain", "plain.qcow2")
        for target, sync in (("plain", "top"), ("t", "full")):
            q.cmd("blockdev-mirror", job_id="j", device="top", target=target,
                  sync=sync)
            q.wait_event("BLOCK_JOB_READY")
            refused(q, "The overlay is already in use", "blockdev-snapshot",
                    node="b", overlay=target)
            q.cmd("block-job-cancel", device="j")
            q.wait_event("BLOCK_JOB_COMPLETED")
        assert d.stop() == 0


def who_uses_a_disk_does_not_go_on_to_an_unfinished_copy():
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        shallow(q)
        q.cmd("block-export-add", type="nbd", id="r", node_name="b", name="r")
        q.cmd("blockdev-mirror", job_id="j", device="top", target="t",
              sync="top")
        q.wait_event("BLOCK_JOB_READY")
        refused(q, "the overlay 't' is an unfinished copy",
                "blockdev-snapshot", node="b", overlay="t")
        q.cmd("block-job-cancel", device="j")
        q.wait_event("BLOCK_JOB_COMPLETED")
        assert d.stop() == 0


def a_transaction_that_fails_changes_nothing():
    for name in "abo":
        image(name + ".qcow2")
    with Daemon(SLUICED, *nbd_server()) as d:
        q = d.qmp()
        for name in "ab":
            add(q, name, name + ".qcow2")
            export(q, name)
        add(q, "o", "o.qcow2", backing=None)
        before = q.cmd("x-debug-query-block-graph")
        abort = {"type": "abort", "data": {}}
        snapshot = {"type": "blockdev-snapshot",
                    "data": {"node": "b", "overlay": "o"}}
        for text, actions in (
                ("aborted using Abort", [sync("a", "a1"), snapshot, abort]),
                ("Cannot find", [sync("a", "a1"), sync("zz", "b1")]),
                ("is busy", [sync("a", "a1"), sync("a", "a2")]),
                ("already has a backing", [
                    {"type": "blockdev-snapshot",
                     "data": {"node": "a", "overlay": "o"}}, snapshot])):
            refused(q, text, "transaction", actions=actions)
            assert q.cmd("x-debug-query-block-graph") == before, text
            assert not os.path.exists("a1.qcow2")
        # A later action sees what the earlier ones do.
        q.cmd("transaction", actions=[sync("a", "a1"), sync("a1", "a2"),
                                      snapshot])
        tops = {e["id"]: e["node-name"] for e in q.cmd("query-block-exports")}
        assert tops == {"e-a": "a2", "e-b": "o"}, tops
        assert nodes(q)["a2"]["backing_file_depth"] == 2
        assert d.stop() == 0


def nobody_waits_for_a_throttled_guest():
    """Each request is paid for by more than an hour."""
    hour = {"iops-total": 1, "iops-size": 1}
    image("a.qcow2")
    with Daemon(SLUICED, *nbd_server(), "--object",
                "throttle-group,id=g,limits.iops-total=1,limits.iops-size=1"
                ) as d:
        q = d.qmp()
        add(q, "a", "a.qcow2")
        q.cmd("blockdev-add", driver="throttle", node_name="t", file="a",
              throttle_group="g")
        export(q, "t")
        guest, other = Nbd("nbd.sock", "t"), Nbd("nbd.sock", "t")
        guest.write(0, b"\1" * 4096)
        for offset in (4096, 8192):
            guest.send(Nbd.WRITE, offset, data=b"\2" * 4096)
        other.flush()  # no limit for those
        q.cmd("blockdev-snapshot-sync", node_name="a", snapshot_file="b.qcow2",
              snapshot_node_name="b")
        q.cmd("block_resize", node_name="t", size=8 * MIB)
        refused(q, "in use, can not be deleted", "object-del", id="g")
        q.cmd("qom-set", path="/objects/g", property="limits", value={
            "iops-total": 0, "iops-size": 0})
        guest.reply()
        guest.reply()
        assert guest.read(8192, 4096) == b"\2" * 4096
        q.cmd("qom-set", path="g", property="limits", value=hour)
        other.write(0, b"\3" * 4096)
        for client in (guest, other):
            client.send(Nbd.READ, 0, 4096)
        q.cmd("block-export-del", id="e-t", mode="hard")
        q.wait_event("BLOCK_EXPORT_DELETED", id="e-t")
        export(q, "t")
        q.cmd("qom-set", path="g", property="limits", value=hour)
        guest = Nbd("nbd.sock", "t")
        guest.write(0, b"\4" * 4096)
        guest.send(Nbd.WRITE, 4096, data=b"\5" * 4096)
        q.cmd("quit")
        assert d.wait() == 0
    # What waited at the snapshot went to the overlay, what waited at the end
    # was never done.
    compare("a.qcow2", {0: (1, 4096), 4096: (0, 8192)})
    compare("b.qcow2", {0: (4, 4096), 4096: (2, 8192)})


if __name__ == "__main__":
    main([a_snapshot_creates_its_overlay, an_existing_overlay_is_used_as_it_is,
          what_fails_leaves_no_file,
          a_header_is_rewritten_without_a_change_of_the_graph,
          nodes_are_reopened_under_a_guest, a_job_keeps_its_node_writable,
          a_header_of_a_layer_below_is_rewritten,
          a_node_is_handed_over_and_taken_back,
          an_export_stays_while_its_node_is_handed_over,
          a_node_may_begin_inactive,
          images_shrink, a_served_disk_changes_its_size, the_graph_shows_who_holds_what,
          several_disks_are_snapshotted_at_one_instant,
          a_mirrors_target_gets_its_backing_file("when it is ready"),
          a_mirrors_target_gets_its_backing_file("early"),
          a_mirrors_target_gets_its_backing_file("early", target_is_zero=True),
          a_mirrors_target_gets_its_backing_file(
              "when it is ready", copy_mode="write-blocking"),
          a_target_that_is_not_bare_gets_no_backing_file,
          who_uses_a_disk_does_not_go_on_to_an_unfinished_copy,
          a_transaction_that_fails_changes_nothing,
          nobody_waits_for_a_throttled_guest])
