"""BigGAN-deep with any of the norm-activation layers of evonorm_plugins.

``python -m biggan.train`` trains, ``python -m biggan.sample`` draws; docs/biggan.md describes both.
"""
