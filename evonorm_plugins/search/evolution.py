"""Which layer to try next: evolution and random search (paper, Section 4.3). Needs no torch."""

import math
import random
from collections import deque

from evonorm_plugins.search.mutation import mutate, random_graph
from evonorm_plugins.search.pareto import pareto_front


class Evolution:
    """Asynchronous regularised evolution of layer graphs.

    A parent is the winner of a tournament among a random share of the most recent genotypes; its
    child is the parent mutated twice, or with probability ``random_share`` a new random graph.

    Args:
        space: "B" or "S".
        seed: every proposal depends on it, on its number and on the genotypes known then.
        window: genotypes that can be parents, the most recent ones.
        tournament: share of them that takes part in a tournament.
        winner: "pareto": a random one of those that no other beats on every anchor architecture;
            "average": the one with the best mean over them. "front" holds no tournament: a random
            one of the window that no other of it beats.
        random_share: 1 is random search.
        mutations: of a child.
        moves: what a mutation can be, see :func:`evonorm_plugins.search.mutation.mutate`; for a
            crossover there is another tournament.

    Only genotypes with scores, those that no filter rejected, are ever in the window.
    """

    def __init__(
        self,
        space="B",
        *,
        seed=0,
        window=2500,
        tournament=0.05,
        winner="pareto",
        random_share=0.5,
        mutations=2,
        moves=("node",),
    ):
        self.space, self.seed, self.tournament = space, seed, tournament
        self.winner, self.random_share, self.mutations = winner, random_share, mutations
        self.moves = tuple(moves)
        self.window = deque(maxlen=window)
        self._front = None  # of the window, found when it is first asked for

    def propose(self, number, attempt=0):
        """``(graph, number of the parent or None)`` to try as candidate ``number``.

        Args:
            attempt: another one gives another proposal, for one that is known already.
        """
        rng = random.Random(f"{self.seed}/{number}/{attempt}")
        if not self.window or rng.random() < self.random_share:
            return random_graph(rng, self.space), None
        parent = self._winner(rng)
        other = self._winner(rng)[1] if "crossover" in self.moves else None
        child = mutate(parent[1], rng, self.space, self.mutations, self.moves, other)
        return child, parent[0]

    def add(self, number, graph, scores):
        """Take a candidate that passed into the window.

        Args:
            scores: validation accuracy on each anchor, in the same order for all.
        """
        self.window.append((number, graph, tuple(scores)))
        self._front = None

    def _winner(self, rng):
        if self.winner == "front":
            if self._front is None:
                self._front = pareto_front(self.window, key=lambda member: member[2])
            return rng.choice(self._front)
        size = max(1, math.ceil(self.tournament * len(self.window)))
        members = rng.sample(self.window, size)
        if self.winner == "average":
            return max(members, key=lambda member: sum(member[2]))
        return rng.choice(pareto_front(members, key=lambda member: member[2]))
