"""Calls of every operator with something wrong: a program, for a kernel that took them may crash.

It writes each call before it makes it, and then, where it was not refused as it should be, why.
"""

import random
import sys

import torch

from evonorm_plugins import functional as F
from evonorm_plugins.kernels.ops.operator import OPERATORS

N, C, GROUPS = 2, 8, 4


def valid_calls():
    """Name, function and arguments, by name and in order, of calls that have nothing wrong."""
    x = torch.randn(N, C, 3, 5)
    common = {"x": x, "weight": torch.randn(C), "bias": torch.randn(C)}
    backward = {"dy": torch.randn_like(x), "x": x, "weight": torch.randn(C)}
    own = {"mean": torch.randn(N, C), "var": torch.rand(N, C)}
    grouped = {"mean_rstd": torch.rand(2, N, GROUPS)}
    batch_mean, batch_var = torch.randn(C), torch.rand(C)
    yield "affine", {**common, "impl": "cpu"}
    yield "affine_backward", {**backward, "impl": "cpu"}
    for kind in ("s0", "s1", "s2", "s2v"):
        v = torch.randn(C) if kind in ("s0", "s2v") else None
        options = {"kind": kind, "groups": GROUPS, "eps": 1e-5, "impl": "cpu"}
        yield "sample", {**common, "v": v, **options}
        yield "sample_backward", {**backward, "v": v, **grouped, "kind": kind, "impl": "cpu"}
    for statistics, act in (("norm", "relu"), ("std", "none"), ("norm", "swish"), ("rms", "tlu")):
        v = torch.randn(C) if act in ("swish", "tlu") else None
        kind = {"statistics": statistics, "act": act}
        forward = {"groups": GROUPS, "eps": 1e-5, "impl": "cpu"}
        yield "group", {**common, "v": v, **kind, **forward}
        given = {**backward, "bias": torch.randn(C), "v": v}
        yield "group_backward", {**given, **grouped, **kind, "impl": "cpu"}
    for act in ("relu", "swish"):
        v = torch.randn(C) if act == "swish" else None
        options = {"act": act, "eps": 1e-5, "impl": "cpu"}
        for mean, var in ((None, None), (batch_mean, batch_var)):
            batch = {"batch_mean": mean, "batch_var": var}
            yield "batch_norm", {**common, "v": v, **batch, **options}
        given = {**backward, "bias": torch.randn(C), "v": v}
        statistics = {"batch_statistics": torch.rand(3, C)}
        yield "batch_norm_backward", {**given, **statistics, "act": act, "impl": "cpu"}
    for kind in ("b0", "b1", "b2", "rs_rej"):
        v = torch.randn(C) if kind == "b0" else None
        options = {"kind": kind, "eps": 1e-5, "impl": "cpu"}
        for given in (None, batch_var):
            yield "batch", {**common, "v": v, "batch_var": given, **options}
        for mean in (None, batch_mean):
            batch = {"batch_mean": mean, "batch_var": batch_var}
            statistics = dict.fromkeys(own) if kind == "rs_rej" else own
            yield "batch_backward", {**backward, "v": v, **statistics, **batch, **options}


WRONG = {
    "kind": ["", "S0", "s3", "b3", "affine"],
    "statistics": ["", "b0", "mean"],
    "act": ["", "ReLU", "gelu"],
    "groups": [0, -1, 3, 5, 16, 2**40],
    "eps": [float("nan"), -1.0, float("inf")],
    "impl": ["", "torch", "auto", "fast", "triton"],
}


def wrong_values(name, value, arguments):
    """What an argument may not be, each with words for it."""
    if name in WRONG:
        # Of the other series a kind is wrong, too.
        others = ["b0" if arguments["kind"][0] == "s" else "s0"] if name == "kind" else []
        yield from ((repr(wrong), wrong) for wrong in WRONG[name] + others)
        return
    may_be_none = name == "batch_mean" or (name == "batch_var" and "dy" not in arguments)
    if value is None:
        value = torch.randn(N, C) if name in ("mean", "var") else torch.randn(C)
        if name in ("v", "mean", "var"):
            yield "one where the kind has none", value
    elif not may_be_none:
        yield "None", None
    yield "a number", value.sum()
    yield "one axis less", value[0]
    yield "one axis more", value[None]
    if name == "x" and "dy" not in arguments:  # of any size, but for the channels
        yield "of fewer channels", value[:, 1:]
        yield "of more channels", torch.cat([value, value], 1)
    else:
        yield "empty", value[:0]
        yield "short", value[..., 1:].contiguous()
        yield "long", torch.cat([value, value, value], -1)
        yield "a sample more", torch.cat([value, value[:1]])
    yield "of integers", value.to(torch.int64)
    yield "complex", value.to(torch.complex64)
    if name in ("x", "dy", "mean", "mean_rstd", "var", "batch_statistics"):
        yield "float64", value.double()
    if name == "dy":
        yield "bfloat16", value.bfloat16()
    yield "on another device", value.to("meta")
    yield "sparse", value.to_sparse()


def bad_calls():
    """Name of an operator, arguments, and the name of each that is wrong, with words for it."""
    calls = list(valid_calls())
    for operator, arguments in calls:
        for name, value in arguments.items():
            for words, wrong in wrong_values(name, value, arguments):
                yield operator, {**arguments, name: wrong}, {name: words}
    choose = random.Random(0)
    for _ in range(500):
        operator, arguments = choose.choice(calls)
        bad, words = dict(arguments), {}
        for name in choose.sample(list(arguments), 2):
            wrong = choose.choice(list(wrong_values(name, arguments[name], arguments)))
            words[name], bad[name] = wrong
        yield operator, bad, words


def public_calls():
    """The same for functions that users call."""
    x, p = torch.randn(N, C, 3, 5), torch.randn(C)
    for function, count in (
        (F.evonorm_s0, 3),
        (F.evonorm_s1, 2),
        (F.evonorm_s2, 2),
        (F.evonorm_b0, 4),
        (F.evonorm_b1, 3),
        (F.evonorm_b2, 3),
        (F.evonorm_b0_train, 3),
        (F.evonorm_b1_train, 2),
        (F.evonorm_b2_train, 2),
        (F.group_norm_act, 2),
        (F.rs_rej_layer, 3),
        (F.rs_rej_layer_train, 2),
        (F.channel_affine, 2),
    ):
        names = ["weight", "bias", "v", "batch_var"][:count]
        if count == 3 and "v" not in function.__code__.co_varnames:
            names[2] = "batch_var"
        for i, name in enumerate(names):
            for words, wrong in wrong_values(name, p, {}):
                parameters = [p] * count
                parameters[i] = wrong
                yield function, [x, *parameters], {name: words}


def refused(call, arguments, names):
    """None, or how a call went that should have been refused in a line with one of the names."""
    try:
        call(*arguments)
    except (ValueError, RuntimeError) as error:
        line = str(error).partition("\n")[0]
        return None if any(name in line for name in names) else f"{type(error).__name__}: {line}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "was computed"


def main():
    total = wrong = 0
    assert {name for name, _ in valid_calls()} == OPERATORS.keys(), OPERATORS.keys()
    calls = []
    for name, arguments in valid_calls():
        OPERATORS[name](*arguments.values())
        getattr(torch.ops.evonorm, name)(*arguments.values())
    for name, arguments, words in bad_calls():
        described = f"{name}({arguments.get('kind', '')}) with {words}"
        # Past the dispatcher, and by it.
        calls.append((described, OPERATORS[name], arguments.values(), words))
        by_dispatcher = getattr(torch.ops.evonorm, name)
        calls.append((f"torch.ops.evonorm.{described}", by_dispatcher, arguments.values(), words))
    for function, arguments, words in public_calls():
        calls.append((f"{function.__name__} with {words}", function, arguments, words))
    for described, call, arguments, words in calls:
        print("CALL", described, flush=True)
        problem = refused(call, arguments, words)
        total += 1
        if problem:
            wrong += 1
            print("WRONG", described, "->", problem, flush=True)
    print(f"{total} calls, {wrong} wrong", flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
