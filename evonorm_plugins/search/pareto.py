"""The best of several numbers at once."""


def pareto_front(members, key):
    """Those that no other one dominates, in their order.

    One dominates another where it is at least as good by every number of ``key(member)``, and
    better by one; of equals, all are there.
    """
    front = []
    # Whatever dominates a point comes before it in this order, and so does one of the front.
    for point in sorted({key(member) for member in members}, reverse=True):
        if not any(_at_least(other, point) for other in front):
            front.append(point)
    best = set(front)
    return [member for member in members if key(member) in best]


def _at_least(a, b):
    return all(x >= y for x, y in zip(a, b, strict=True))
