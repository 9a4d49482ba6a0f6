"""Measure EvoNorms against what they replace: layers on tensors, norms in whole models.

All competitors run in one process, in turns, in an order that is drawn anew for each round; what
is reported are medians over the rounds.
"""

COMMANDS = {
    "layers": "layers on tensors, as `evonorm bench`",
    "host": "microseconds of the host that a call of a layer takes",
    "models": "norms in a ResNet-50 and in Detectron2's Mask R-CNN",
    "timm": "timm's models with EvoNorm, GN or FRN: its layers, ours, and the same model with BN",
    "gan": "a training step of BigGAN-deep, beside another implementation",
    "ap": "evonorm eval ap, beside other tools for AP",
    "scores": "IS and FID of whole processes, beside torch-fidelity and pytorch-fid",
}
EXAMPLES = """
examples:
  tools/benchmark.py layers
  tools/benchmark.py host
  tools/benchmark.py models --models resnet50 --size 128 --rounds 5 --csv models.csv
  tools/benchmark.py timm --models resnetv2_50d_evos --rounds 5
  tools/benchmark.py gan --norms EvoNormS0 BN-ReLU
  tools/benchmark.py scores --inception-weights pt_inception-2015-12-05-6726825d.pth
"""
