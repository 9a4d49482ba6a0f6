"""Check on a CUDA GPU that the Triton kernels are right and fast enough, in eight minutes at most.

What is checked: every layer against plain torch in float64, CUDA graphs, streams, devices, mixed
precision, large tensors, compute-sanitizer where there is one; time of layers against copies, BN,
GN and compiled plain code; host time; training steps of whole models. Needs torch, Triton and this
checkout. timm, torchvision, apex and Liger are used where they are installed.

Parts run in processes of their own, so that one that dies or hangs takes nothing else with it. What
there was no time for is listed.
"""

from gpu.command import EXAMPLES, add_arguments, run

__all__ = ["EXAMPLES", "add_arguments", "run"]
