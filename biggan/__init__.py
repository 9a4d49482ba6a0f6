"""BigGAN with any of the norm-activation layers of evonorm_plugins."""
