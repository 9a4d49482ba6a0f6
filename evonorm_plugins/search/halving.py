"""How good a candidate must be, beside those before it, for what costs more. Needs no torch."""

import bisect
import math
from collections import defaultdict


class Bars:
    """The accuracies that candidates had at each rung, and the bar that a share of them reaches.

    This is successive halving without waiting: a candidate is compared with those that came to the
    same rung before it, whichever rungs these got to.

    Args:
        rung_share: of the accuracies on an anchor at a rung that go on, from 0 to 1.
        top_share: the same of the means after the quality filter.
        least: of a rung's results, before which there is no bar.
    """

    def __init__(self, rung_share, top_share, least):
        self.rung_share, self.top_share, self.least = rung_share, top_share, least
        self._rungs, self._top = defaultdict(lambda: defaultdict(list)), []

    def add(self, details):
        """Take in what the filters measured of a candidate that was evaluated."""
        for rung, accuracies in details.get("rungs", {}).items():
            for anchor, accuracy in accuracies.items():
                bisect.insort(self._rungs[rung][anchor], accuracy)
        if "top" in details:
            bisect.insort(self._top, details["top"])

    def now(self):
        """``{rung: {anchor: lowest accuracy}, "top": lowest mean}``, those that there are."""
        found = {}
        for rung, anchors in self._rungs.items():
            bars = {a: self._bar(known, self.rung_share) for a, known in anchors.items()}
            found[rung] = {a: bar for a, bar in bars.items() if bar is not None}
        top = self._bar(self._top, self.top_share)
        return found if top is None else {**found, "top": top}

    def _bar(self, known, share):
        """The lowest of the best ``share`` of sorted numbers."""
        if len(known) < self.least:
            return None
        return known[-math.ceil(share * len(known))]
