#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Sluice beside its peers: same files, same run, one after the other in turns,
medians, ratios.

  bench.py BUILD [--quick] [--only TEXT] [--rounds N] [--seconds S]
           [--disk FOLDER] [--memory FOLDER] [--json FILE] [--svg FILE]

Ends with 0 whatever the figures are: they are for people to read.  Only a
program that fails, fails the bench."""
import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile

import cases
import copies
import peers
import plot


def fs_type(path):
    return subprocess.run(["stat", "-f", "-c", "%T", path], check=True,
                          capture_output=True, text=True).stdout.strip()


def measure(case, found, ground, rounds):
    """Medians of each figure by peer; the peers take turns."""
    samples = {}
    for _ in range(rounds):
        for name in case.peers:
            peer = found.get(name)
            if peer is None and name not in ("copy", "qemu-img"):
                continue
            samples.setdefault(name, []).append(case.sample(ground, peer))
    return {name: {key: statistics.median(s[key] for s in list_)
                   for key in list_[0]}
            for name, list_ in samples.items()}


def figure(value):
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


SHOWN = ["iops", "alone_ms", "ready_s", "ready", "over_least", "write_ms", "pause_ms",
         "longest_ms", "start_ms", "cpu_us", "p99_us", "mib_s", "cpu_s", "guest_kept",
         "busy_p99_us", "stream_mib_s", "clones_s", "kib_each", "open_ms",
         "cold_iops", "private_mib"]


def show(case, medians, verdicts):
    print(f"\n{case.name}")
    for name, m in medians.items():
        parts = [f"{k} {figure(m[k])}" for k in SHOWN if k in m]
        if "bytes_per_second" in m and m["iops"] < 20000:
            parts.append(f"MB/s {figure(m['bytes_per_second'] / 1e6)}")
        print(f"  {name:9} " + "  ".join(parts))
    for v in verdicts:
        print(f"  {'ok  ' if v['ok'] else 'MISS'} {v['text']}: "
              f"{figure(v['ratio'])}")
    sys.stdout.flush()


def parse():
    p = argparse.ArgumentParser(description="Sluice beside its peers")
    p.add_argument("build")
    p.add_argument("--quick", action="store_true",
                   help="one short round of everything")
    p.add_argument("--only", help="cases whose name contains this")
    p.add_argument("--rounds", type=int)
    p.add_argument("--seconds", type=float)
    p.add_argument("--disk", help="folder on a disk file system")
    p.add_argument("--memory", default="/dev/shm", help="folder on tmpfs")
    p.add_argument("--json", help="where the figures go")
    p.add_argument("--svg", help="where the plot goes")
    a = p.parse_args()
    a.rounds = a.rounds or (1 if a.quick else 5)
    a.seconds = a.seconds or (0.7 if a.quick else 2)
    a.disk = os.path.abspath(a.disk or a.build)
    return a


def main():
    a = parse()
    if shutil.disk_usage(a.memory).free < 12 << 30:
        sys.exit(f"bench: {a.memory} needs 12 GiB of free space")
    found = peers.find(os.path.abspath(a.build))
    folders = {"ext4": tempfile.mkdtemp(prefix="bench-", dir=a.disk),
               "tmpfs": tempfile.mkdtemp(prefix="bench-", dir=a.memory),
               "run": tempfile.mkdtemp(prefix="bench-")}
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(),
               "disk": fs_type(a.disk), "memory": fs_type(a.memory),
               "peers": {n: peers.version(p) for n, p in found.items()
                         if isinstance(p, peers.Daemon)},
               "rounds": a.rounds, "seconds": a.seconds}
    print(json.dumps(machine))
    results = []
    try:
        ground = cases.Ground(os.path.abspath(a.build), folders, a.seconds)
        for case in cases.all_cases() + copies.copy_cases():
            if a.only and a.only not in case.name:
                continue
            medians = measure(case, found, ground, a.rounds)
            verdicts = [v for v in (b.judge(medians) for b in case.bars) if v]
            show(case, medians, verdicts)
            results.append({"case": case.name, "chart": case.chart,
                            "medians": medians, "bars": verdicts})
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
    if a.json:
        with open(a.json, "w") as f:
            json.dump({"machine": machine, "results": results}, f, indent=1)
    if a.svg:
        plot.write(a.svg, results)
    bars = [v for r in results for v in r["bars"]]
    print(f"\n{sum(v['ok'] for v in bars)} of {len(bars)} bars reached")


if __name__ == "__main__":
    main()
