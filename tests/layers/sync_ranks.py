"""What one process of a group does with the cases of ``test_sync.py``."""

import copy

import torch
import torch.distributed as dist
from torch import nn

import evonorm_plugins


def build(case, **options):
    layer = evonorm_plugins.get_norm_act(case["name"], 4, dtype=case["xs"][0].dtype, **options)
    layer.load_state_dict(case["state"])
    return layer


def all_gradients(layer, x, dy, dx_weight=None):
    """Output, gradients, moving variance; with ``dx_weight`` also gradients of a function of those
    gradients: the sum of ``dx * dx_weight`` and of the squares of the others."""
    x = x.clone().requires_grad_()
    dy = dy.clone().requires_grad_()
    parameters = list(layer.parameters())
    y = layer(x)
    first = torch.autograd.grad(y, [x, *parameters], dy, create_graph=dx_weight is not None)
    result = {"y": y, "first": list(first), "running_var": layer.running_var}
    if dx_weight is not None:
        value = (first[0] * dx_weight).sum() + sum(g.square().sum() for g in first[1:])
        inputs = [x, dy, *parameters]
        result["second"] = list(torch.autograd.grad(value, inputs, materialize_grads=True))
    return result


def statistics(case, rank):
    weights = case.get("dx_weights")
    weight = weights[rank] if weights else None
    return all_gradients(build(case), case["xs"][rank], case["dys"][rank], weight)


def without_nan(case, rank):
    """Raises where a backward pass meets NaN, even one that reaches no result."""
    with torch.autograd.detect_anomaly():
        return statistics(case, rank)


def compiled(case, rank):
    layer = torch.compile(build(case), backend="aot_eager", fullgraph=True)
    return all_gradients(layer, case["xs"][rank], case["dys"][rank])


def inference_on_one_rank(case, rank):
    """Waits for nobody: the other ranks do not call the layer."""
    if rank:
        return {}
    layer = build(case)
    return {"eval": layer.eval()(case["xs"][0]), "frozen": layer.train().freeze()(case["xs"][0])}


def transformed(case, rank):
    """What a transform of torch.func says in training mode, and whether inference works there."""
    layer, x = build(case), case["xs"][rank]
    transform = torch.func.grad(lambda x: layer(x).sum())
    try:
        transform(x)
    except RuntimeError as error:
        message = str(error)
    layer.eval()
    return {"message": message, "gradient": transform(x)}


def own_group(rank):
    """Ranks 0 and 1 are a group, the last one is another."""
    pair, alone = dist.new_group([0, 1]), dist.new_group([2])
    return alone if rank == 2 else pair


def some_of_the_ranks(case, rank):
    """A copy talks to the same ranks."""
    layer = copy.deepcopy(build(case, process_group=own_group(rank)))
    return all_gradients(layer, case["xs"][rank], case["dys"][rank])


def converted(case, rank):
    """The plain layer of a case, converted, with the process group given then."""
    plain = build({**case, "name": case["name"].removeprefix("Sync")})
    layer = evonorm_plugins.convert_sync_evonorm(plain, own_group(rank))
    return all_gradients(layer, case["xs"][rank], case["dys"][rank])


def data_parallel(case, rank):
    """Gradients under DistributedDataParallel, and those of this rank without it.

    Two forward passes come before the backward pass: at the second, DDP overwrites the buffers.
    """
    torch.manual_seed(0)
    x = case["xs"][rank]
    norm = evonorm_plugins.get_norm_act(case["name"], 4, dtype=x.dtype)
    model = nn.Sequential(nn.Conv2d(4, 4, 1, dtype=x.dtype), norm)

    def gradients(call):
        model.zero_grad()
        (call(x).square().mean() + call(2 * x).square().mean()).backward()
        return [p.grad.clone() for p in model.parameters()]

    return {
        "state": copy.deepcopy(model.state_dict()),
        "own": gradients(model),
        "reduced": gradients(nn.parallel.DistributedDataParallel(model)),
    }


def outcome(case, rank):
    """What the function that a case names gives for it."""
    return globals()[case["run"]](case, rank)
