#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Sluice beside its peers: same files, same run, one after the other in turns,
medians, ratios.

  bench.py BUILD [--quick] [--only TEXT] [--rounds N] [--seconds S] [--list]
           [--disk FOLDER] [--memory FOLDER] [--json FILE] [--svg FILE]

With PEER_QSD=PROGRAM a second qemu-storage-daemon.  Ends with 0 whatever the
figures are: they are for people to read.  Only a program that fails, or a
result that is not what it should be, fails the bench."""
import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import time

import cases
import ground
import peers
import plot

FREE = 12 << 30  # bytes that it needs on tmpfs


def measure(case, found, place, rounds, turn):
    """Medians of each figure by peer.  Another peer is the first each time;
    @turn says which in the first round."""
    names = [n for n in case.peers if n in found or n in ("copy", "qemu-img")]
    samples = {n: [] for n in names}
    for i in range(turn, turn + rounds):
        at = i % len(names)
        for name in names[at:] + names[:at]:
            samples[name].append(
                case.sample(place, found.get(name), not samples[name]))
    if case.end:
        case.end(place)
    return {name: {key: statistics.median(s[key] for s in list_)
                   for key in list_[0]}
            for name, list_ in samples.items()}


def figure(value):
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


SHOWN = ["iops", "alone_ms", "ready_s", "ready", "over_alone",
         "over_least", "write_ms",
         "pause_ms", "longest_ms", "start_ms", "cpu_us", "p99_us", "mib_s",
         "cpu_s", "shared", "guest_kept", "idle_p99_us", "busy_p99_us",
         "alone_mib_s", "stream_mib_s", "clones_s", "kib_each", "open_ms",
         "cold_iops", "cold_p99_us", "depth1_iops", "of_depth1", "private_mib",
         "after_load_mib", "of_without", "touch_kept", "steady_kept"]


def show(case, where, medians, verdicts, seconds):
    where = "; ".join(where) or "no file system"
    print(f"\n{case.name}  [{where}; {seconds:.0f} s]")
    for name, m in medians.items():
        parts = [f"{k} {figure(m[k])}" for k in SHOWN if k in m]
        if "bytes_per_second" in m and m["iops"] < 20000:
            parts.append(f"MB/s {figure(m['bytes_per_second'] / 1e6)}")
        print(f"  {name:11} " + "  ".join(parts))
    for v in verdicts:
        print(f"  {'met ' if v['ok'] else 'MISS'} {v['text']}: "
              f"{figure(v['ratio'])}")
    sys.stdout.flush()


def parse():
    p = argparse.ArgumentParser(description="Sluice beside its peers")
    p.add_argument("build")
    p.add_argument("--quick", action="store_true",
                   help="one short round of everything")
    p.add_argument("--only", help="cases whose name contains this")
    p.add_argument("--list", action="store_true", help="only name the cases")
    p.add_argument("--rounds", type=int)
    p.add_argument("--seconds", type=float)
    p.add_argument("--disk", help="folder on a disk (default: BUILD)")
    p.add_argument("--memory", default="/dev/shm", help="folder on tmpfs")
    p.add_argument("--json", help="where the figures go")
    p.add_argument("--svg", help="where the plot goes")
    a = p.parse_args()
    a.rounds = a.rounds or (1 if a.quick else 5)
    a.seconds = a.seconds or (0.3 if a.quick else 2)
    a.build = os.path.abspath(a.build)
    a.disk = os.path.abspath(a.disk or a.build)
    return a


def run(a, chosen, place, found, results):
    for turn, case in enumerate(chosen):
        start = time.monotonic()
        medians = measure(case, found, place, a.rounds, turn)
        verdicts = [v for v in (b.judge(medians) for b in case.bars) if v]
        where = [place.where(fs) for fs in case.on]
        show(case, where, medians, verdicts, time.monotonic() - start)
        results.append({"case": case.name, "on": where, "chart": case.chart,
                        "medians": medians, "bars": verdicts})


def write_json(path, machine, results):
    with open(path, "w") as f:
        json.dump({"machine": machine, "results": results}, f, indent=1)


def end(sig, frame):
    """Told to end, it ends as with an exception: nothing stays mounted.  Being
    told again must not cut that short."""
    signal.signal(sig, signal.SIG_IGN)
    sys.exit("bench: terminated")


def main():
    a = parse()
    chosen = [c for c in cases.all_cases(a.quick)
              if not a.only or a.only in c.name]
    if a.list:
        print("\n".join(c.name for c in chosen))
        return
    signal.signal(signal.SIGTERM, end)
    if shutil.disk_usage(a.memory).free < FREE:
        sys.exit(f"bench: {a.memory} needs {FREE >> 30} GiB of free space")
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        place = ground.Ground(stack, a.build, a.disk, a.memory, a.quick,
                              a.seconds)
        found = peers.find(a.build, place.folders["ext4"])
        machine = {"kernel": platform.release(), "cpus": os.cpu_count(),
                   "disk": place.where("ext4"), "memory": place.where("tmpfs"),
                   "peers": {n: peers.version(p) for n, p in found.items()},
                   "rounds": a.rounds, "seconds": a.seconds}
        print(json.dumps(machine, indent=1))
        results = []
        try:
            run(a, chosen, place, found, results)
        finally:  # what was measured until then is kept in any case
            if a.json:
                write_json(a.json, machine, results)
    if a.svg:
        plot.write(a.svg, results)
    bars = [v for r in results for v in r["bars"]]
    print(f"\n{sum(v['ok'] for v in bars)} of {len(bars)} bars met, "
          f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
