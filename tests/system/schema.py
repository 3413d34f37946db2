# SPDX-License-Identifier: BSD-3-Clause
"""What the daemon answers is what query-qmp-schema says.

schema.py SLUICED
"""
import os
import sys

from harness import Daemon, main, need, run

SLUICED = os.path.abspath(sys.argv[1])

need("qemu-img")

JSON = {"string": str, "boolean": bool, "null": type(None), "object": dict,
        "array": list}


class Schema:
    def __init__(self, entities):
        self.by_name = {e["name"]: e for e in entities}
        assert len(self.by_name) == len(entities)

    def check(self, type_name, value, where):
        """Asserts that the value is one of that type, with nothing extra."""
        e = self.by_name[type_name]
        getattr(self, "check_" + e["meta-type"])(e, value, where)

    def check_builtin(self, e, value, where):
        kind = e["json-type"]
        if kind == "int":
            ok = isinstance(value, int) and not isinstance(value, bool)
        elif kind == "number":
            ok = isinstance(value, (int, float))
        else:
            ok = kind == "value" or isinstance(value, JSON[kind])
        assert ok, (where, kind, value)

    def check_enum(self, e, value, where):
        assert value in [m["name"] for m in e["members"]], (where, value)

    def check_array(self, e, value, where):
        assert isinstance(value, list), (where, value)
        for i, v in enumerate(value):
            self.check(e["element-type"], v, f"{where}[{i}]")

    def check_alternate(self, e, value, where):
        for m in e["members"]:
            try:
                return self.check(m["type"], value, where)
            except AssertionError:
                pass
        raise AssertionError((where, "no branch fits", value))

    def members(self, e, value):
        members = {m["name"]: m for m in e["members"]}
        if "tag" in e:
            for v in e["variants"]:
                if v["case"] == value.get(e["tag"]):
                    members.update(self.members(self.by_name[v["type"]],
                                                value))
        return members

    def check_object(self, e, value, where):
        assert isinstance(value, dict), (where, value)
        members = self.members(e, value)
        for name in value:
            assert name in members, (where, "extra", name)
        for name, m in members.items():
            if name in value:
                self.check(m["type"], value[name], f"{where}.{name}")
            else:
                assert "default" in m, (where, "missing", name)


def prepare():
    run("qemu-img", "create", "-q", "-f", "qcow2", "base.qcow2", "1M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F",
        "qcow2", "top.qcow2")
    run("qemu-img", "create", "-q", "-f", "qed", "a.qed", "1M")


def every_answer_and_event_fits():
    prepare()
    with Daemon(SLUICED) as d:
        q = d.qmp()
        schema = Schema(q.cmd("query-qmp-schema"))
        commands = {c["name"] for c in q.cmd("query-commands")}
        assert commands == {e["name"] for e in schema.by_name.values()
                            if e["meta-type"] == "command"}

        def ask(command, **args):
            answer = q.cmd(command, **args)
            schema.check(schema.by_name[command]["ret-type"], answer, command)
            return answer

        for name, driver, file in (("top", "qcow2", "top.qcow2"),
                                   ("qed", "qed", "a.qed")):
            ask("blockdev-add", driver=driver, node_name=name,
                file={"driver": "file", "filename": file})
        ask("nbd-server-start", addr={"type": "unix",
                                      "data": {"path": "nbd.sock"}})
        ask("block-export-add", type="nbd", id="e", node_name="top")
        ask("object-add", qom_type="throttle-group", id="g",
            limits={"iops-total": 10000})
        assert ask("qom-list", path="/objects")
        assert ask("qom-list", path="/objects/g")
        assert ask("qom-get", path="/objects/g", property="limits")
        ask("qom-set", path="/objects/g", property="limits",
            value={"iops-total": 0})
        ask("object-del", id="g")
        ask("block-stream", device="top", job_id="j", auto_finalize=False,
            auto_dismiss=False)
        q.wait_event("BLOCK_JOB_PENDING")
        for command in ("query-block-exports", "query-jobs", "query-version",
                        "query-block-jobs", "query-commands",
                        "query-qmp-schema", "query-named-block-nodes",
                        "x-debug-query-block-graph"):
            assert ask(command), command
        ask("query-named-block-nodes", flat=True)
        ask("job-finalize", id="j")
        seen = []
        while not seen or seen[-1]["data"].get("status") != "concluded":
            if not q.events:
                q.events.append(q.receive())
            seen.append(q.events.pop(0))
        ask("job-dismiss", id="j")
        ask("block-export-del", id="e")
        ask("nbd-server-stop")
        for event in seen + q.events:
            assert set(event) == {"event", "data", "timestamp"}, event
            schema.check(schema.by_name[event["event"]]["arg-type"],
                         event["data"], event["event"])
        assert {e["event"] for e in seen} >= {"BLOCK_JOB_COMPLETED",
                                              "JOB_STATUS_CHANGE"}


if __name__ == "__main__":
    main([every_answer_and_event_fits])
