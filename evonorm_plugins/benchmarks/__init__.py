"""Time and memory of layers on tensors: what ``evonorm bench`` measures. The names need no torch.

All competitors take turns in one process, in an order that is drawn anew for each round; what is
reported are medians over the rounds.
"""

EVONORMS = ("EvoNormS0", "EvoNormS1", "EvoNormS2", "EvoNormB0", "EvoNormB1", "EvoNormB2")
LAYERS = (*EVONORMS, "GN-ReLU", "GN-Swish-1", "GN-Swish", "LN-ReLU", "FRN", "RS + rej")
BATCH_NORMS = ("BN-ReLU", "BN-Swish-1")  # in kernels on CPUs alone
PAIRS = ("BN+ReLU", "GN+ReLU", "GN+SiLU")
RIVALS = (*PAIRS, "timm", "torch")
OTHERS = ("apex", "Liger")  # for GPUs
SHAPES = (
    *("8x256x56x56", "4x64x128x128", "2x256x200x200"),
    *("16x512x14x14", "2x2048x7x7", "1x256x50x50"),  # these fit in the caches
)
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("contiguous", "channels_last")
PHASES = {"train": ("forward", "backward", "fwd+bwd"), "inference": ("forward",)}
