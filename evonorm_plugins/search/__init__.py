"""The paper's layer search (arXiv 2004.02967, Sections 3 and 4), from primitives up.

``graph``, ``mutation`` and ``formula`` need no torch: genotypes are tuples, cheap to change, to
hash and to send. ``layer`` makes one a module, ``known`` has the paper's layers, ``checks`` the
cheapest reasons to refuse one.
"""
