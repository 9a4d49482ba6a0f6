"""Images and sets of images, from anywhere.

:mod:`~evonorm_plugins.data.open` gives the source that a path names, a
:class:`~evonorm_plugins.data.source.Source`; :mod:`~evonorm_plugins.data.decode` has the one rule
by which files become pixels; :mod:`~evonorm_plugins.data.loader` reads in worker processes.
"""
