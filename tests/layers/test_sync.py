"""SyncEvoNorm*: two and three processes give what one gives on the batch of all.

One start of processes serves all cases of a number of ranks.
"""

import copy
import pickle

import pytest
import torch
from torch import nn

from evonorm_plugins import (
    EvoNormB0,
    SyncEvoNormB0,
    SyncEvoNormB1,
    convert_sync_evonorm,
    get_norm_act,
    layers,
    list_norm_acts,
)
from tests.layers import sync_ranks

SYNC = ["SyncEvoNormB0", "SyncEvoNormB1", "SyncEvoNormB2"]
# Name of a case -> (N, H, W) of every rank.
SHAPES = {
    2: {
        "equal": [(2, 4, 3), (2, 4, 3)],
        "unequal N": [(3, 4, 3), (1, 4, 3)],
        "unequal H and W": [(2, 5, 2), (1, 1, 7)],
        "empty rank": [(0, 4, 3), (2, 4, 3)],
    },
    3: {
        "all unequal": [(1, 2, 3), (4, 1, 1), (2, 3, 5)],
        "two empty": [(0, 4, 3), (3, 2, 2), (0, 1, 1)],
    },
}
# Plain formulas run in float64, fused kernels in float32.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
CASES = [
    (ranks, shape, name, dtype)
    for ranks, shapes in SHAPES.items()
    for shape in shapes
    for name in SYNC
    for dtype in TOLERANCE
]


def draw_case(run, name, shapes, dtype=torch.float64, scale=1, shift=0):
    layer = get_norm_act(name, 4)
    state = {k: torch.randn(4, dtype=torch.float64).abs() + 0.1 for k in layer.state_dict()}
    size = [(n, 4, h, w) for n, h, w in shapes]
    return {
        "run": run,
        "name": name,
        "state": state,
        "xs": [(torch.randn(s).double() * scale + shift).to(dtype) for s in size],
        "dys": [torch.randn(s).to(dtype) for s in size],
        "dx_weights": [torch.randn(s).to(dtype) for s in size],
    }


def draw_cases(ranks):
    torch.manual_seed(ranks)
    cases = {}
    for shape, sizes in SHAPES[ranks].items():
        for name in SYNC:
            for dtype in TOLERANCE:
                case = draw_case("statistics", name, sizes, dtype)
                cases[f"{shape}, {name}, {dtype}"] = case
    sizes = [(2, 3, 3)] * ranks
    if ranks == 3:
        cases["some of the ranks"] = draw_case("some_of_the_ranks", SYNC[0], sizes)
        cases["converted"] = draw_case("converted", SYNC[1], sizes)
        return cases
    for name in SYNC:
        for dtype in TOLERANCE:
            case = draw_case("without_nan", name, [(0, 4, 3)] * 2, dtype)
            cases[f"nothing at all, {name}, {dtype}"] = case
    cases["inference"] = draw_case("inference_on_one_rank", SYNC[0], sizes)
    cases["transformed"] = draw_case("transformed", SYNC[0], sizes)
    cases["compiled"] = draw_case("compiled", SYNC[0], sizes)
    for name in ("EvoNormS0", "EvoNormB0", "SyncEvoNormB0"):
        for dtype in TOLERANCE:
            case = draw_case("data_parallel", name, sizes, dtype)
            cases[f"data parallel, {name}, {dtype}"] = case
    far = draw_case("statistics", SYNC[0], [(4, 9, 7), (1, 5, 5)], torch.float32, 1e-2, 1e3)
    cases["far mean"] = {**far, "dx_weights": None}
    half = draw_case("statistics", SYNC[0], sizes, torch.bfloat16)
    cases["bfloat16"] = {**half, "dx_weights": None}
    unbiased = "SyncEvoNormB2(unbiased_running_var=True)"
    cases["unbiased"] = draw_case("statistics", unbiased, SHAPES[2]["unequal N"])
    broken = draw_case("statistics", SYNC[0], sizes)
    broken["xs"][0][1, 2, 0, 0] = float("inf")
    cases["not finite"] = {**broken, "dx_weights": None}
    return cases


@pytest.fixture(scope="module")
def outcomes(run_ranks):
    """``outcomes(ranks)``: all cases, and what every rank saved for them."""
    done = {}

    def outcomes(ranks):
        if ranks not in done:
            done[ranks] = None  # not started again by every test if it fails in the first
            cases = draw_cases(ranks)
            done[ranks] = cases, run_ranks(sync_ranks.outcome, cases, ranks)
        return done[ranks] or pytest.fail("the processes failed in an earlier test")

    return outcomes


def normalized(name, x, v, batch_var):
    """The formulas of B0, B1, B2 before gamma and beta, on one rank."""
    std = (batch_var + 1e-5).sqrt()[:, None, None]
    if name.endswith("B0"):
        deviation = x - x.mean((2, 3), keepdim=True)
        own = (deviation.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
        return x / torch.maximum(std, v[:, None, None] * x + own)
    rms = (x.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    return x / torch.maximum(std, (x + 1) * rms if name.endswith("B1") else rms - x)


def one_process(case):
    """The same as the ranks' results, from plain torch over all elements in float64."""
    keys = [k for k in ("weight", "bias", "v") if k in case["state"]]
    xs, dys = ([t.double().requires_grad_() for t in case[key]] for key in ("xs", "dys"))
    # Every rank has its own parameters, as it has its own gradients of them.
    parameters = [[case["state"][k].clone().requires_grad_() for k in keys] for _ in xs]
    elements = torch.cat([x.transpose(0, 1).flatten(1) for x in xs], 1)
    moving = case["state"]["running_var"]
    var = elements.var(1, correction=0) if elements.numel() else moving
    ys = []
    for x, (weight, bias, *v) in zip(xs, parameters, strict=True):
        y = normalized(case["name"], x, v[0] if v else None, var)
        ys.append(y * weight[:, None, None] + bias[:, None, None])

    def gradients(values, inputs, **options):
        """Per rank, of the sum over ranks."""
        flat = [t for of_rank in inputs for t in of_rank]
        grads = iter(torch.autograd.grad(sum(values), flat, **options))
        return [[next(grads) for _ in of_rank] for of_rank in inputs]

    inputs = [[x, *p] for x, p in zip(xs, parameters, strict=True)]
    loss = [(y * dy).sum() for y, dy in zip(ys, dys, strict=True)]
    first = gradients(loss, inputs, create_graph=True)
    results = [
        {"y": y, "first": g, "running_var": torch.lerp(moving, var, 0.1)}
        for y, g in zip(ys, first, strict=True)
    ]
    if case["dx_weights"]:
        values = [
            (dx * w).sum() + sum(g.square().sum() for g in rest)
            for (dx, *rest), w in zip(first, case["dx_weights"], strict=True)
        ]
        inputs = [[x, dy, *p] for x, dy, p in zip(xs, dys, parameters, strict=True)]
        second = gradients(values, inputs, materialize_grads=True)
        results = [{**r, "second": g} for r, g in zip(results, second, strict=True)]
    return results


def assert_as_one_process(case, results, **tolerance):
    for rank, expected in enumerate(one_process(case)):
        actual = results[rank]
        assert actual.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(
                actual[key],
                expected[key],
                **tolerance,
                check_dtype=False,
                msg=lambda m, rank=rank, key=key: f"rank {rank}, {key}: {m}",
            )


@pytest.mark.parametrize(("ranks", "shape", "name", "dtype"), CASES)
def test_as_one_process(ranks, shape, name, dtype, outcomes):
    """Outputs, first and second gradients, moving variance."""
    cases, saved = outcomes(ranks)
    key = f"{shape}, {name}, {dtype}"
    results = [of_rank[key] for of_rank in saved]
    tolerance = TOLERANCE[dtype]
    assert_as_one_process(cases[key], results, rtol=10 * tolerance, atol=tolerance)
    for r in results:
        assert torch.equal(r["running_var"], results[0]["running_var"])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SYNC)
def test_nothing_on_any_rank(name, dtype, outcomes):
    cases, saved = outcomes(2)
    key = f"nothing at all, {name}, {dtype}"
    results = [of_rank[key] for of_rank in saved]
    for r in results:
        assert torch.equal(r["running_var"], cases[key]["state"]["running_var"].to(dtype))
        assert all(g.eq(0).all() for g in r["first"])
        assert all(g.isfinite().all() for g in r["first"] + r["second"])


def test_unbiased_moving_variance_is_that_of_all_ranks(outcomes):
    cases, saved = outcomes(2)
    case = cases["unbiased"]
    elements = torch.cat([x.transpose(0, 1).flatten(1) for x in case["xs"]], 1)
    expected = torch.lerp(case["state"]["running_var"], elements.var(1, correction=1), 0.1)
    for of_rank in saved:
        torch.testing.assert_close(of_rank["unbiased"]["running_var"], expected)


def test_inference_waits_for_no_other_rank(outcomes):
    cases, saved = outcomes(2)
    case, result = cases["inference"], saved[0]["inference"]
    plain = get_norm_act("EvoNormB0", 4, dtype=torch.float64).eval()
    plain.load_state_dict(case["state"])
    torch.testing.assert_close(result["eval"], plain(case["xs"][0]))
    torch.testing.assert_close(result["frozen"], plain(case["xs"][0]))
    assert saved[1]["inference"] == {}


def test_no_statistics_of_all_ranks_inside_a_transform(outcomes):
    _, saved = outcomes(2)
    for result in (r["transformed"] for r in saved):
        assert result["message"].startswith("statistics of all ranks cannot be had inside a")
        assert result["gradient"].isfinite().all()


def test_compiled_without_graph_break(outcomes):
    cases, saved = outcomes(2)
    case = {**cases["compiled"], "dx_weights": None}
    assert_as_one_process(case, [r["compiled"] for r in saved], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("key", ["some of the ranks", "converted"])
def test_process_group_of_some_ranks(key, outcomes):
    cases, saved = outcomes(3)
    case = {**cases[key], "dx_weights": None}
    results = [r[key] for r in saved]
    parts = {k: (case[k][:2], case[k][2:]) for k in ("xs", "dys")}
    for i, part in enumerate((results[:2], results[2:])):
        own = {**case, "xs": parts["xs"][i], "dys": parts["dys"][i]}
        assert_as_one_process(own, part, rtol=1e-10, atol=1e-10)


def test_far_mean_in_float32(outcomes):
    """Mean 1e3, standard deviation 1e-2: sums of squares over ranks would be noise."""
    cases, saved = outcomes(2)
    expected = one_process(cases["far mean"])
    for actual, exact in zip((r["far mean"] for r in saved), expected, strict=True):
        after = actual["running_var"].double()
        torch.testing.assert_close(after, exact["running_var"], rtol=1e-6, atol=0)
        torch.testing.assert_close(actual["y"].double(), exact["y"], rtol=1e-3, atol=1e-3)


def test_bfloat16(outcomes):
    cases, saved = outcomes(2)
    expected = one_process(cases["bfloat16"])
    for actual, exact in zip((r["bfloat16"] for r in saved), expected, strict=True):
        assert actual["y"].dtype == torch.bfloat16
        assert actual["first"][0].dtype == torch.bfloat16
        scale = exact["first"][0].abs().max().item()
        torch.testing.assert_close(actual["y"].double(), exact["y"], rtol=0.05, atol=0.05)
        error = (actual["first"][0] - exact["first"][0]).abs().max().item()
        assert error < 0.05 * scale


def test_values_that_are_not_finite_on_one_rank(outcomes):
    cases, saved = outcomes(2)
    before = cases["not finite"]["state"]["running_var"]
    for result in saved:
        after = result["not finite"]["running_var"]
        assert after.isfinite().all()
        assert (after != before).tolist() == [True, True, False, True]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0", "SyncEvoNormB0"])
def test_distributed_data_parallel(name, dtype, outcomes):
    """Reduces gradients to their mean once, whatever the layer does with statistics."""
    cases, saved = outcomes(2)
    key = f"data parallel, {name}, {dtype}"
    results = [r[key] for r in saved]
    mean = [torch.stack(g).mean(0) for g in zip(*(r["own"] for r in results), strict=True)]
    for r in results:
        torch.testing.assert_close(r["reduced"], mean)
    if name == "EvoNormB0":
        return  # its statistics are those of each rank
    # Ranks have as many elements each, so the mean over all is the mean of theirs.
    model = nn.Sequential(nn.Conv2d(4, 4, 1), get_norm_act(name, 4)).to(dtype)
    model.load_state_dict(results[0]["state"])
    x = torch.cat(cases[key]["xs"])
    (model(x).square().mean() + model(2 * x).square().mean()).backward()
    torch.testing.assert_close(mean, [p.grad for p in model.parameters()])


# One process


@pytest.mark.parametrize("name", SYNC)
def test_without_a_group_it_is_the_plain_layer(name, make, draw, gradients):
    sync, plain = make(name), make(name.removeprefix("Sync"))
    plain.load_state_dict(sync.state_dict())
    x, dy = draw(3, 8, 5, 7), draw(3, 8, 5, 7)
    torch.testing.assert_close(gradients(sync, x, dy), gradients(plain, x, dy), rtol=0, atol=0)
    assert torch.equal(sync.running_var, plain.running_var)
    assert torch.equal(sync.eval()(x), plain.eval()(x))


def test_conversion_changes_the_class_alone(make, draw):
    model = nn.Sequential(
        make("EvoNormB0", momentum=0.3, eps=0.01, impl="torch"),
        nn.Sequential(make("EvoNormB1").freeze(), nn.Conv2d(8, 8, 1)),
        make("EvoNormB2").eval(),
        make("EvoNormB0", apply_act=False),
    )
    model[2].weight.requires_grad_(False)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before = dict(model.named_parameters()) | dict(model.named_buffers())
    state = copy.deepcopy(model.state_dict())

    assert convert_sync_evonorm(model) is model

    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert list(after) == list(before)
    assert all(after[k] is before[k] for k in before)
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    assert type(model[0]) is SyncEvoNormB0
    options = {"momentum": 0.3, "eps": 0.01, "impl": "torch", "process_group": None}
    assert model[0].options() == options
    assert type(model[1][0]) is SyncEvoNormB1
    assert model[1][0].frozen
    assert not model[0].frozen
    assert not model[2].weight.requires_grad
    assert [m.training for m in (model, model[0], model[2])] == [True, True, False]
    assert not model[3].apply_act
    x = draw(2, 8, 3, 3)
    affine = x * model[3].weight[:, None, None] + model[3].bias[:, None, None]
    torch.testing.assert_close(model[3](x), affine)
    model(x).sum().backward()
    assert calls


def test_conversion_of_a_layer_itself_and_of_a_shared_one(make):
    layer = make("EvoNormB0")
    assert convert_sync_evonorm(layer) is layer
    assert type(layer) is SyncEvoNormB0
    model = nn.Module()
    model.a = model.b = make("EvoNormB1")
    convert_sync_evonorm(model)
    assert model.a is model.b
    assert type(model.b) is SyncEvoNormB1


def test_conversion_leaves_the_other_layers(make):
    model = convert_sync_evonorm(nn.Sequential(*(make(name) for name in list_norm_acts())))
    expected = [f"Sync{n}" if n.startswith("EvoNormB") else n for n in list_norm_acts()]
    assert [type(m) for m in model] == [type(make(n)) for n in expected]

    class Own(EvoNormB0):
        pass

    assert type(convert_sync_evonorm(Own(8))) is Own


def test_converted_layers_copy(make, draw):
    layer = convert_sync_evonorm(make("EvoNormB0"))
    x = draw(2, 8, 3, 3)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is SyncEvoNormB0
        assert other.weight is not layer.weight
        assert torch.equal(other.eval()(x), layer.eval()(x))


def test_copies_share_the_process_group_alone(make):
    """A group cannot be copied; layers that refer to each other can."""

    class Group:
        def __deepcopy__(self, memo):
            raise TypeError("cannot be copied")

    layer = make("SyncEvoNormB0", process_group=Group())
    layer.register_forward_hook(layer.extra_repr)
    other, twin = copy.deepcopy([layer, layer])
    assert other is twin
    assert next(iter(other._forward_hooks.values())).__self__ is other
    assert other is not layer
    assert other.process_group is layer.process_group
    assert other.weight is not layer.weight
    assert other.running_var.data_ptr() != layer.running_var.data_ptr()


def test_documentation_reads_well():
    for name in SYNC:
        doc = getattr(layers, name).__doc__
        assert doc.startswith(f":class:`{name.removeprefix('Sync')}`")
        assert "None" not in doc.splitlines()[0]
