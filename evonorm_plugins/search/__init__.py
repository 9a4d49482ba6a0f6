"""The paper's layer search (arXiv 2004.02967, Sections 3 and 4) over the graphs of
:mod:`evonorm_plugins.layers.graph`: mutation, evolution, filters, the task, workers and the store.
"""
