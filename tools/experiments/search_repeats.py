#!/usr/bin/env python
"""Count how many proposals of a search are equal to an earlier one, and by what they are found.

Proposals are random graphs, and children of the paper's layers: mutated twice, as evolution does.
Nothing is trained.

examples:
  search_repeats.py --proposals 3000
"""

import argparse
import random
from collections import Counter

from evonorm_plugins.layers.graph.graph import Graph
from evonorm_plugins.layers.graph.operations import SPACES
from evonorm_plugins.search.filters import trial
from evonorm_plugins.search.fingerprint import TOLERANCE, fingerprints
from evonorm_plugins.search.measure import known_layers
from evonorm_plugins.search.mutation import MOVES, mutate, padded, random_graph
from evonorm_plugins.text_table import aligned

STAGES = ("structure", "function", "gamma and beta", "signs")


class Seen:
    """Fingerprints, found by their first number."""

    def __init__(self):
        self.places = {}

    def has(self, fingerprint):
        place = round(fingerprint[0] / TOLERANCE)
        return any(
            all(abs(a - b) <= TOLERANCE for a, b in zip(fingerprint, other, strict=True))
            for near in (place - 1, place, place + 1)
            for other in self.places.get(near, ())
        )

    def add(self, fingerprint):
        self.places.setdefault(round(fingerprint[0] / TOLERANCE), []).append(fingerprint)


def count(graphs):
    """How many graphs each stage finds equal to an earlier one, of which kind they are."""
    found, digests, exact, absorbed = Counter(), set(), Seen(), Seen()
    for graph in graphs:
        if graph.digest() in digests:
            found["structure"] += 1
            continue
        digests.add(graph.digest())
        useful = trial(graph) is None
        found["pass the trial"] += useful
        stage = _stage(graph, exact, absorbed)
        found[stage] += 1
        found[stage, "useful"] += useful
        found[stage, "constant part"] += useful and _has_constant_part(graph)
    return found


def _stage(graph, exact, absorbed):
    """By which stage a graph is found, or what it is instead."""
    plain, own = fingerprints(graph, affine=False), fingerprints(graph)
    if plain is None or own is None:
        return "without"
    if exact.has(plain[0]):
        return "function"
    exact.add(plain[0])
    if absorbed.has(own[0]):
        return "gamma and beta"
    if any(map(absorbed.has, own[1:])):
        return "signs"
    absorbed.add(own[0])
    return "new"


def _has_constant_part(graph):
    nodes = graph.canonical().nodes
    return any(not Graph.unchecked(nodes[: k + 1]).depends_on_x() for k in range(len(nodes)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--proposals", type=int, default=3000, help="of each kind")
    parser.add_argument("--space", choices=SPACES, default="B")
    parser.add_argument("--moves", nargs="+", choices=MOVES, default=["node"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, known = random.Random(args.seed), known_layers(args.space)

    def child():
        parent, other = (padded(rng.choice(known), rng, args.space) for _ in range(2))
        return mutate(parent, rng, args.space, 2, args.moves, other)

    kinds = {"random": lambda: random_graph(rng, args.space), "children": child}
    rows = [["", *kinds]]
    found = [count(make() for _ in range(args.proposals)) for make in kinds.values()]
    rows.append(["proposals", *[str(args.proposals)] * 2])
    for key, name in (
        ("structure", "equal by structure"),
        ("pass the trial", "others, that pass the trial"),
        *(((s, "useful"), f"  of these equal by {s}") for s in STAGES[1:]),
        *(((s, "constant part"), f"    {s}, with a constant part") for s in STAGES[1:2]),
        (("new", "useful"), "  new"),
        (("without", "useful"), "  without a fingerprint"),
    ):
        rows.append([name, *(str(f[key]) for f in found)])
    print(aligned(rows, left=(0,)))


if __name__ == "__main__":
    main()
