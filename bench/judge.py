# SPDX-License-Identifier: BSD-3-Clause
"""What a case is, and what is asked of its figures."""
from peers import SLUICE


class Bar:
    """@figure of Sluice must be at least (or at most) @factor times that of
    the best of @peers; without peers it must be @factor itself."""

    def __init__(self, figure, peers, factor, at_most=False):
        self.figure, self.factor, self.at_most = figure, factor, at_most
        self.peers = [peers] if isinstance(peers, str) else peers

    def judge(self, medians):
        """None where nobody is here to be compared with."""
        ours = medians[SLUICE][self.figure]
        text, ratio = self.figure, ours
        if self.peers:
            theirs = {p: medians[p][self.figure] for p in self.peers
                      if p in medians}
            if not theirs:
                return None
            best = (min if self.at_most else max)(theirs, key=theirs.get)
            text = f"{self.figure} / {best}"
            ratio = ours / max(theirs[best], 1e-9)
        sign = "<=" if self.at_most else ">="
        ok = ratio <= self.factor if self.at_most else ratio >= self.factor
        return {"text": f"{text} {sign} {self.factor:.3g}", "ratio": ratio,
                "ok": ok}


class Either:
    """The lower of several bars: one of them is enough."""

    def __init__(self, *bars):
        self.bars = bars

    def judge(self, medians):
        verdicts = [v for v in (b.judge(medians) for b in self.bars) if v]
        if not verdicts:
            return None
        met = next((v for v in verdicts if v["ok"]), verdicts[0])
        return {"text": " or ".join(v["text"] for v in verdicts),
                "ratio": met["ratio"], "ok": met["ok"]}


class Case:
    """@sample(ground, peer, first) measures one peer once and returns its
    figures; @first: it is this peer's first round, in which results are
    compared with what they should be.  A name in @peers that stands for no
    program ("copy") is sampled with None.  @on: the file systems it runs on.
    @chart: the figure that the plot shows.  @end(ground) takes back what the
    rounds shared."""

    def __init__(self, name, on, peers, sample, bars, chart=None, end=None):
        self.name, self.on, self.peers = name, on, peers
        self.sample, self.bars = sample, bars
        self.chart, self.end = chart, end
