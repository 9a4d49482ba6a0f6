"""What the tests of layer graphs share: graphs computed by numpy, node by node."""

import math
import os

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session")
def device():
    return torch.device(os.environ.get("EVONORM_TEST_DEVICE", "cpu"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def aggregate(name, x, groups, eps):
    """``"std_{w,h}"`` of an ``(N, C, H, W)`` array, by loops over what is aggregated alone."""
    moment, over = name.split("_")
    over = over.strip("{}")
    n, c, _, _ = x.shape
    size = c // next(g for g in range(min(groups, c), 0, -1) if c % g == 0)
    parts = {
        "b,w,h": [np.s_[:, k : k + 1] for k in range(c)],
        "w,h,c": [np.s_[i : i + 1] for i in range(n)],
        "w,h": [np.s_[i : i + 1, k : k + 1] for i in range(n) for k in range(c)],
        "w,h,c/g": [np.s_[i : i + 1, k : k + size] for i in range(n) for k in range(0, c, size)],
    }[over]
    result = np.empty_like(x)
    for part in parts:
        values = [float(v) for v in x[part].ravel()]
        mean = math.fsum(values) / len(values)
        square = math.fsum(v * v for v in values) / len(values)
        variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
        result[part] = {
            "mean": mean,
            "rms": math.sqrt(square + eps),
            "std": math.sqrt(variance + eps),
        }[moment]
    return result


def away_from_zero(x, eps):
    return np.where(x < 0, -1.0, 1.0) * np.maximum(np.abs(x), eps)


ELEMENTWISE = {
    "add": lambda a, b, eps: a + b,
    "mul": lambda a, b, eps: a * b,
    "div": lambda a, b, eps: a / away_from_zero(b, eps),
    "max": lambda a, b, eps: np.maximum(a, b),
    "neg": lambda a, eps: -a,
    "sigmoid": lambda a, eps: 1 / (1 + np.exp(-a)),
    "tanh": lambda a, eps: np.tanh(a),
    "exp": lambda a, eps: np.exp(a),
    "log": lambda a, eps: np.sign(a) * np.log(np.maximum(np.abs(a), eps)),
    "square": lambda a, eps: a**2,
    "sqrt": lambda a, eps: a / np.sqrt(np.maximum(np.abs(a), eps)),
}


def evaluate(graph, x, v0=0.0, v1=1.0, groups=32, eps=1e-5):
    """Output ``(N, C, H, W)`` of a graph's nodes as they stand, every value of full size."""
    c = x.shape[1]
    vectors = [np.broadcast_to(np.reshape(v, (1, -1, 1, 1)), (1, c, 1, 1)) for v in (v0, v1)]
    values = [x, np.zeros_like(x), *(np.broadcast_to(v, x.shape) for v in vectors)]
    with np.errstate(all="ignore"):
        for op, *inputs in graph.nodes:
            given = [values[i] for i in inputs]
            if op in ELEMENTWISE:
                values.append(ELEMENTWISE[op](*given, eps))
            else:
                values.append(aggregate(op, *given, groups, eps))
    return values[-1]


@pytest.fixture(scope="session")
def reference():
    return evaluate


@pytest.fixture(scope="session")
def reference_aggregation():
    return aggregate
