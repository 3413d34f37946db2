#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""sluice status: it says what is true of this file, whatever its journal says.

status.py SLUICED SLUICE
"""
import json
import os
import shutil
import sys
import time

from harness import Daemon, journal, main, need, run

SLUICED, SLUICE = (os.path.abspath(p) for p in sys.argv[1:3])
SPEED = 4 << 20

need("qemu-img", "qemu-io")


def make(*names):
    """A chain, the lowest first; all but the highest hold something."""
    for i, name in enumerate(names):
        link = ["-b", names[i - 1], "-F", "qcow2"] if i else []
        run("qemu-img", "create", "-q", "-f", "qcow2", *link, name, "32M")
        run("qemu-io", "-f", "qcow2", "-c",
            f"write -P {i + 1} {4 * i}M {16 if i else 32}M", name)
    run("qemu-img", "convert", "-O", "raw", names[-1], "model")


def daemon(*names):
    """A chain of nodes that are named as their files."""
    node = None
    for name in names:
        node = {"driver": "qcow2", "node-name": name, "backing": node,
                "file": {"driver": "file", "filename": name}}
    return Daemon(SLUICED, "--blockdev", json.dumps(node))


def opened(name):
    return Daemon(SLUICED, "--blockdev", f"qcow2,node-name={name},"
                  f"file.driver=file,file.filename={name}")


def wait_for(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


def progress(q):
    jobs = q.cmd("query-jobs")
    return jobs and jobs[0]["current-progress"]


def begin(d, device, **arguments):
    q = d.qmp()
    q.cmd("block-merge", job_id="j", device=device, into="snapshot",
          speed=SPEED, **arguments)
    wait_for(lambda: progress(q))
    return q


def cut(*names):
    """A merge of the disk, killed."""
    make(*names)
    with daemon(*names) as d:
        begin(d, names[-1])
        d.kill()
        d.wait()


def finish(q):
    q.cmd("block-job-set-speed", device="j", speed=0)
    wait_for(lambda: not q.cmd("query-jobs"))


def status(image):
    """As JSON, and the text."""
    return (json.loads(run(SLUICE, "--json", "status", image)[1]),
            run(SLUICE, "status", image)[1])


def nothing(image):
    s, text = status(image)
    return s["jobs"] == [] and not s["deletions"] and "layer-of" not in s \
        and "nothing is under way" in text


def deletions(heir, *names):
    """As a merge leaves them that has merged these into @heir."""
    h = os.stat(heir)
    born = born_of(heir)
    records = []
    for i, name in enumerate(names):
        note = {"job": "j", "is-last": i + 1 == len(names),
                "heir-ino": h.st_ino, "heir-born": born, "file": name,
                "format": "qcow2", "ino": os.stat(name).st_ino,
                "born": born_of(name), "exclusive": False,
                "dependents-in": []}
        records.append((7, f"j/{i}".encode() + b"\0" +
                        json.dumps(note).encode()))
    return records


def born_of(name):
    """As a job's record has it."""
    with opened(name) as d:
        q = d.qmp()
        run("qemu-img", "create", "-q", "-f", "qcow2", "to", "32M")
        q.cmd("blockdev-add", driver="qcow2", node_name="to",
              file={"driver": "file", "filename": "to"})
        q.cmd("blockdev-mirror", job_id="m", device=name, target="to",
              sync="full", speed=1)
        wait_for(lambda: status(name)[0]["jobs"])
        device = status(name)[0]["jobs"][0]["device"]
        q.cmd("job-cancel", id="m")
        d.stop()
    assert device["ino"] == os.stat(name).st_ino, device
    return device["born"]


def a_deletion_that_was_cut_off_says_what_is_left():
    make("base")
    for name in ("mid", "top", "other"):
        run("qemu-img", "create", "-q", "-f", "qcow2", name, "32M")
    records = deletions("base", "top", "mid")
    journal("base", *records[:1])
    assert nothing("base")  # only with the last of them they count
    journal("base", *records)
    s, text = status("base")
    assert s["deletions"] == [{"job": "j", "file": "top"},
                              {"job": "j", "file": "mid"}], s
    assert "'top', when a daemon opens the image to write" in text, text
    assert "'mid', when" in text and "nothing" not in text, text
    # By another file of that name nothing is meant, nor by one that has gone.
    os.unlink("top")
    os.rename("other", "top")
    assert [d["file"] for d in status("base")[0]["deletions"]] == ["mid"]
    with opened("base") as d:
        d.qmp()
        d.stop()
    assert os.path.exists("top") and not os.path.exists("mid")
    assert nothing("base")


def a_deletion_is_of_the_file_that_goes_on():
    """A journal that was copied deletes nothing, and that is what is said."""
    make("base")
    run("qemu-img", "create", "-q", "-f", "qcow2", "top", "32M")
    journal("base", *deletions("base", "top"))
    shutil.copy("base", "copy")
    os.rename("copy", "base")
    assert nothing("base"), status("base")


def a_merge_below_the_disk_names_its_layers():
    make("base", "mid", "top", "head")
    with daemon("base", "mid", "top", "head") as d:
        q = begin(d, "top", snapshot="mid")
        s, text = status("top")
        job = s["jobs"][0]
        assert (job["top"]["file"], job["base"]["file"]) == ("top", "mid"), s
        assert "layers from 'top' down to 'mid' is under way" in text, text
        s, text = status("mid")
        assert s["layer-of"] == "top" and not s["jobs"], s
        assert s["layer-jobs"][0]["job"] == "j", s
        assert "layers from 'top' down to 'mid'" in text, text
        assert nothing("head") and nothing("base")
        finish(q)
        d.stop()


def a_disk_that_was_renamed_is_found():
    """Its journal is not, by a daemon: that has to be renamed, too."""
    cut("base", "top")
    os.rename("top", "disk")
    s, text = status("base")
    assert s["layer-jobs"][0]["state"] == "disk-is-gone", s
    assert s["layer-jobs"][0]["disk-now"] == "disk", s
    assert "'top.sluice' is renamed to 'disk.sluice'" in text, text
    s, text = status("disk")
    assert [(j["id"], j["recorded-as"]) for j in s["jobs"]] == [("j", "top")], s
    assert "'top.sluice' is renamed to 'disk.sluice'" in text, text
    # Another file has its name, as after a snapshot by hand.
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "disk", "-F", "qcow2",
        "top")
    s, text = status("top")
    assert s["jobs"] == [] and "nothing is under way" in text, text
    s, text = status("base")
    assert s["layer-jobs"][0]["state"] == "disk-is-another-file", s
    assert s["layer-jobs"][0]["disk-now"] == "disk", s
    os.unlink("top")
    os.rename("top.sluice", "disk.sluice")
    assert "goes on when a daemon opens" in status("disk")[1]
    with opened("disk") as d:
        q = d.qmp()
        wait_for(lambda: q.cmd("query-jobs"))
        finish(q)
        d.stop()
    assert nothing("base") and nothing("disk")
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", "base", "model")


def a_disk_that_has_gone_leaves_a_layer_that_may_be_anything():
    cut("base", "top")
    os.unlink("top")
    os.unlink("top.sluice")
    s, text = status("base")
    assert s["layer-jobs"][0]["state"] == "disk-is-gone", s
    assert "disk-now" not in s["layer-jobs"][0], s
    assert "may be neither old nor new" in text, text


def a_copied_chain_has_no_job():
    cut("base", "top")
    os.mkdir("copy")
    for name in ("base", "top", "base.sluice", "top.sluice"):
        shutil.copy(name, "copy")
    assert status("top")[0]["jobs"]  # the one that was copied has
    os.chdir("copy")
    s, text = status("top")
    assert s["jobs"] == [] and "nothing is under way" in text, text
    assert [j["id"] for j in s["jobs-of-another-file"]] == ["j"], s
    assert "is of another file" in text, text
    s, text = status("base")
    assert s["layer-jobs"][0]["state"] == "disk-is-another-file", s
    assert "may be neither old nor new" in text, text
    with opened("top") as d:  # says the same
        q = d.qmp()
        wait_for(lambda: "was of another file" in d.errors())
        assert not q.cmd("query-jobs")
        d.stop()


def a_job_that_is_over_leaves_no_layer():
    """Its record beside the layer outlives it, where a daemon was killed."""
    cut("base", "top")
    os.unlink("top.sluice")
    assert nothing("base"), status("base")


if __name__ == "__main__":
    main([a_deletion_that_was_cut_off_says_what_is_left,
          a_deletion_is_of_the_file_that_goes_on,
          a_merge_below_the_disk_names_its_layers,
          a_disk_that_was_renamed_is_found,
          a_disk_that_has_gone_leaves_a_layer_that_may_be_anything,
          a_copied_chain_has_no_job, a_job_that_is_over_leaves_no_layer])
