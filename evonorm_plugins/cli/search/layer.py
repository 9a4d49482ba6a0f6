"""Write a formula as a layer file, which every norm option takes: NORM: path/to/layer.json.

A formula is made of x, v0, v1, 0, 1, + - * /, max(a, b), sigmoid, tanh, exp, log, square, sqrt and
mean_{...}, rms_{...}, std_{...} over b,w,h or w,h,c or w,h or w,h,c/g; what is used several times
can be given a name: "z * sigmoid(z), z = x / std_{w,h}(x)".
"""

from evonorm_plugins.cli.search.common import add_layer_output, check_layer_output, say_written

EXAMPLES = """
examples:
  evonorm search layer "tanh(max(x, tanh(x)))" layer.json
  evonorm search layer "x / max(std_{b,w,h}(x), v1 * x + std_{w,h}(x))" b0.json
"""


def add_arguments(parser):
    parser.add_argument("formula", help="in brackets if it begins with a minus")
    add_layer_output(parser)


def run(args):
    from evonorm_plugins.layers.graph.parse import parse

    graph = parse(args.formula)
    check_layer_output(args)
    graph.save(args.out)
    say_written(args.out, graph)
