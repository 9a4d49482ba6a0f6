"""Host time of a layer: microseconds of one forward pass, and of one forward and backward.

Least of the means over 20 calls, the competitors in turns. On tiny tensors of the CPU it is all the
time there is; on a GPU it is the time that queuing takes, kernels apart. With --impl triton and no
GPU a stub is the driver: kernels are compiled, their launches counted and dropped.
"""

from evonorm_plugins.benchmarks import BATCH_NORMS, EVONORMS, LAYERS, LAYOUTS
from evonorm_plugins.cli.bench import begin, check, parse_shape, show
from evonorm_plugins.cli.types import count
from evonorm_plugins.errors import ConfigError

EXAMPLES = """
examples:
  tools/benchmark.py host
  tools/benchmark.py host --layers EvoNormS0 --shapes 1x64x4x4 --repeats 100 --json
  tools/benchmark.py host --impl triton --layout channels_last
  tools/benchmark.py host --device cuda --shapes 1x256x50x50
"""
SHAPES = ("1x64x4x4", "1x256x1x2")


def add_arguments(parser):
    add = parser.add_argument
    shapes = [parse_shape(shape) for shape in SHAPES]
    shown = f"(default: {' '.join(SHAPES)})"
    add("--shapes", nargs="+", type=parse_shape, default=shapes, metavar="NxCxHxW", help=shown)
    layers = (*LAYERS, *BATCH_NORMS)
    add("--layers", nargs="+", choices=layers, default=EVONORMS, help="(default: EvoNorms)")
    add("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="(default: %(default)s)")
    add(
        "--impl",
        choices=("auto", "torch", "cpu", "triton"),
        default="auto",
        help="of ours (default: %(default)s)",
    )
    help = "(default: cpu; with --impl triton cuda where there is one)"
    add("--device", choices=("cpu", "cuda"), help=help)
    add("--threads", type=count, default=1, help="of torch (default: %(default)s)")
    add("--repeats", type=count, default=200, help="means to take (default: %(default)s)")
    add("--csv", metavar="FILE", help="write all numbers")
    add("--force", action="store_true", help="replace a file that no benchmark wrote")
    add("--json", action="store_true", help="print JSON instead of tables")


def run(args):
    import torch

    args.plot = None
    is_for_cuda = args.impl == "triton" and torch.cuda.is_available()
    args.device = args.device or ("cuda" if is_for_cuda else "cpu")
    check(args, "--layers", args.layers, None)
    for name in args.layers:
        if args.impl == "triton" and name in BATCH_NORMS:
            raise ConfigError(f"--impl triton --layers {name}: there is no Triton kernel of it")

    from evonorm_plugins.benchmarks.host import host_report, run_host, stub_triton

    launches = None
    if args.impl == "triton" and args.device == "cpu":
        launches = stub_triton()
    begin(args)
    show(args, run_host(args, launches), "shape", host_report, None)
