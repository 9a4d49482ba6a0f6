"""BigGAN-deep with any norm-activation layer in its generator."""

COMMANDS = {
    "train": "train on one device, or on many with torchrun -m biggan.train",
    "sample": "draw images with a trained generator",
}
EXAMPLES = """
examples:
  evonorm gan train --config digits32_EvoNormS0
  evonorm gan sample --checkpoint output/digits32_EvoNormS0/best.pt --n 64 --out grid.png
  evonorm eval gan --checkpoint best.pt --real ref_stats.npz
"""
