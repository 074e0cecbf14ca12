"""Where to keep cuts: the dynamic programme behind checkpoints (Griewank and Walther, "Revolve", 2000).

Going back from cut j to cut i with room for s kept cuts costs, in forward work done again,

    back(i, j, s) = min over k of forward(i, k) + back(k, j, s - 1) + back(i, k, s),

or, with no cut kept in between, one forward pass from i for every run of gradients. Stretches of the chain with the
same costs share their answers, so that a chain of equal blocks takes little time, and chains share a table.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate

import numpy as np

FAR = np.iinfo(np.int64).max // 4


@lru_cache(maxsize=64)
def splits(work: tuple[int, ...], frozen: int, stride: int) -> Splits:
    """The table of a chain whose segments cost `work` to make again; those below `frozen` have no gradients."""
    return Splits(work, frozen, stride)


class Splits:
    """Nodes are the cuts that may be kept or started from: cut 0, and all from `frozen` on. Tables are indexed by the
    node at the bottom and the number of nodes up to the top."""

    def __init__(self, work: tuple[int, ...], frozen: int, stride: int) -> None:
        self.frozen, self.stride = frozen, stride
        self.cuts = sorted({0, *range(frozen, len(work) + 1)})
        prefix = [0, *accumulate(work)]
        self.at = np.array([prefix[c] for c in self.cuts], np.int64)
        self.node = {c: a for a, c in enumerate(self.cuts)}
        self.count = count = len(self.cuts)
        self.may = np.array([c >= frozen and (c - frozen) % stride == 0 for c in self.cuts])
        self.alike: list[tuple[np.ndarray, np.ndarray]] = []    # by length: nodes to work out, and whose answer each takes
        kind = [(bool(m), c >= frozen) for m, c in zip(self.may, self.cuts, strict=True)]
        group: list[object] = list(kind)
        for length in range(count):
            known: dict[object, int] = {}
            inverse = np.array([known.setdefault(g, len(known)) for g in group], np.int64)
            numbered = inverse.tolist()
            first = np.array([numbered.index(n) for n in range(len(known))], np.int64)
            self.alike.append((first, inverse))
            group = [(numbered[a], int(self.at[a + length + 1] - self.at[a + length]), kind[a + length + 1])
                     for a in range(count - length - 1)]
        plain = np.zeros((count, count), np.int64)
        for length in range(2, count):
            first, inverse = self.alike[length]
            plain[:count - length, length] = np.array([sum(self._runs(a, length)) for a in first.tolist()])[inverse]
        self.levels = [(plain, np.zeros_like(plain))]           # by kept cuts: cost, and nodes to the split (0: none)
        self.fresh: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}     # by node at the top, then by kept cuts

    def runs(self, i: int, j: int) -> list[range]:
        """The segments from cut i to cut j that have gradients, in runs of `stride` counted from below, last run first."""
        low = max(i, self.frozen)
        return [range(k, min(k + self.stride, j)) for k in reversed(range(low, j, self.stride))]

    def _runs(self, a: int, length: int) -> list[int]:
        """Forward work before each run of gradients, last run first, when nothing in between is kept."""
        i, j = self.cuts[a], self.cuts[a + length]
        if j <= max(self.frozen, i + 1):
            return []
        return [int(self.at[self.node[run[-1]]] - self.at[a]) for run in self.runs(i, j)]

    def best(self, i: int, j: int, slots: int, first: bool) -> tuple[int, int]:
        """(work done again, the next cut to keep; 0 for none) to go back from cut j to cut i with `slots` kept cuts.

        first: the forward pass from i to j has just been done for the first time, so that its cuts were on hand.
        """
        if j <= max(self.frozen, i + 1):
            return 0, 0
        a, top, slots = self.node[i], self.node[j], min(slots, self.count)
        if first:
            cost, split = self._first(top, slots)
            return int(cost[a]), self.cuts[a + int(split[a])] if split[a] else 0
        cost, split = self._level(slots)
        step = int(split[a, top - a])
        return int(cost[a, top - a]), self.cuts[a + step] if step else 0

    def _level(self, slots: int) -> tuple[np.ndarray, np.ndarray]:
        while len(self.levels) <= slots:
            plain, fewer = self.levels[0][0], self.levels[-1][0]
            cost, split = (table.copy() for table in self.levels[-1])
            for length in range(len(self.levels) + 1, self.count):      # in shorter ones all cuts are kept already
                first, inverse = self.alike[length]
                step = np.arange(1, length)
                between = first[:, None] + step
                total = self.at[between] - self.at[first][:, None] + fewer[between, length - step] + cost[first, 1:length]
                total = np.where(self.may[between], total, FAR)
                where = total.argmin(1)
                least = total[np.arange(len(first)), where]
                better = least < plain[first, length]
                cost[:self.count - length, length] = np.where(better, least, plain[first, length])[inverse]
                split[:self.count - length, length] = np.where(better, where + 1, 0)[inverse]
            self.levels.append((cost, split))
        return self.levels[slots]

    def _first(self, top: int, slots: int) -> tuple[np.ndarray, np.ndarray]:
        """The same right after the first forward pass to node `top`, by the node at the bottom."""
        rows = self.fresh.setdefault(top, [])
        if slots < len(rows):
            return rows[slots]
        below, above = np.ogrid[:top, :top]
        steps = np.maximum(above - below, 0)
        usable = (above > below) & self.may[:top]
        saved = self.at[max(top - 1, 0)] - self.at[:top]        # the last run finds its cuts on hand
        plain = self.levels[0][0][np.arange(top), top - np.arange(top)]
        plain = np.where(plain > 0, plain - saved, 0)
        while len(rows) <= slots:
            cost, split = plain, np.zeros_like(plain)
            if rows:
                total = np.where(usable, rows[-1][0] + self._level(len(rows))[0][below, steps], FAR)
                where = total.argmin(1)
                least = total[np.arange(top), where]
                cost = np.minimum(plain, least)
                split = np.where(least < plain, where - np.arange(top), 0)
            rows.append((cost, split))
        return rows[slots]
