# SPDX-License-Identifier: BSD-3-Clause
"""What the sectors of a disk may hold after its daemon was killed."""
from harness import run

SECTOR = 512


class Sectors:
    """For each sector the values that it may hold: by the files alone, and
    when what was acknowledged is there."""

    def __init__(self, data):
        self.size = len(data)
        self.serial = 0
        self.is_now(data)

    def is_now(self, data):
        """It was read so: older values cannot return."""
        self.may = [[data[i:i + SECTOR]] for i in range(0, self.size, SECTOR)]
        self.acknowledged = [list(v) for v in self.may]
        self.batch = {}  # sector: how many values were sent

    def write(self, nbd, rng):
        count = rng.choice([1, 3, 8, 40, 130])
        first = rng.randrange(0, self.size // SECTOR - count + 1)
        self.serial += 1
        value = self.serial.to_bytes(8, "big") * (SECTOR // 8)
        for s in range(first, first + count):
            self.may[s].append(value)
            self.acknowledged[s].append(value)
            self.batch[s] = self.batch.get(s, 0) + 1
        return nbd.send(nbd.WRITE, first * SECTOR, data=value * count)

    def replied(self):
        """All of the batch; those of one sector may land in either order."""
        for s, n in self.batch.items():
            del self.acknowledged[s][:-n]
        self.batch = {}

    def flushed(self, nbd):
        """All writes were acknowledged before a flush that was, too."""
        doubtful = []
        for s, values in enumerate(self.may):
            if len(values) > 1:
                del values[0]
            if len(values) > 1:
                doubtful.append((s, values))
        # Overlapping writes of one batch may land in either order; the disk
        # itself says which one did.
        for s, values in doubtful:
            got = nbd.read(s * SECTOR, SECTOR)
            if got not in values:
                raise AssertionError(f"sector {s} after a flush")
            values[:] = [got]

    def load(self, nbd, rng, depth, on_reply=None):
        """Writes and flushes until the daemon is gone."""
        while True:
            batch = rng.randrange(1, depth + 1)
            for _ in range(batch):
                self.write(nbd, rng)
            for _ in range(batch):
                nbd.reply()
            self.replied()
            if rng.random() < 0.4:
                nbd.flush()
                self.flushed(nbd)
                batch += 1
            if on_reply:
                on_reply(batch)

    def judge(self, data, allowed, what):
        if len(data) != self.size:
            raise AssertionError(f"{what}: the disk has {len(data)} bytes")
        for s, values in enumerate(allowed):
            got = data[s * SECTOR:(s + 1) * SECTOR]
            if got not in values:
                raise AssertionError(
                    f"{what}: sector {s} begins with {got[:8].hex()}, not "
                    f"with one of {[v[:8].hex() for v in values]}")

    def judge_file(self, fmt, path, raw, allowed, what):
        """By qemu-img, which sees the files alone; @raw is made."""
        run("qemu-img", "check", "-f", fmt, path, ok=(0, 3, 63))
        run("qemu-img", "convert", "-f", fmt, "-O", "raw", path, raw)
        with open(raw, "rb") as f:
            data = f.read()
        self.judge(data, allowed, f"{fmt}, {what}")
        return data
