"""The numbers of the paper's tables, equal to those of the reference tools.

Detectors: AP and AR as pycocotools computes them (:mod:`~evonorm_plugins.metrics.ap`). Generators:
Inception score, FID, KID, precision and recall as torch-fidelity and pytorch-fid compute them.
Images become features, features become statistics, statistics become scores, each in functions that
can be used alone; :mod:`~evonorm_plugins.cli.eval` is the command line, ``evonorm-eval``.

Nothing is imported here: every module names what it needs from the extra ``metrics``.
"""
