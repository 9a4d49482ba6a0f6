"""Layers given as graphs of primitives or as formulas (arXiv 2004.02967, Section 3, Table 1).

``graph``, ``formula`` and ``parse`` need no torch: genotypes are tuples, cheap to change, to hash
and to send. ``module`` makes one a layer, ``known`` has the paper's.
"""
