"""Models with drawn parameters, and their numbers side by side."""

import torch


def drawn(model):
    """``model`` with parameters and moving variances other than those it starts from."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                torch.randn_like(parameter), alpha=0.3 * parameter.std(correction=0) + 0.1
            )
        for key, buffer in model.named_buffers():
            if key.endswith("running_var"):
                buffer.add_(torch.rand_like(buffer))
    return model


def numbers(model, x, dy=None):
    """Output, gradients and moving statistics after one call, by name; ``dy`` None is ones."""
    x = x.clone().requires_grad_()
    y = model(x)
    inputs = {"x": x, **{k: p for k, p in model.named_parameters() if p.requires_grad}}
    grads = torch.autograd.grad(y, list(inputs.values()), torch.ones_like(y) if dy is None else dy)
    buffers = {k: b.clone() for k, b in model.named_buffers() if b.is_floating_point()}
    return {"y": y.detach(), **dict(zip(inputs, grads, strict=True)), **buffers}


def assert_as_good(ours, theirs, exact, slack=1e-6):
    """The rule of accuracy: at most twice timm's error, the largest over a tensor."""
    assert ours.keys() == theirs.keys() == exact.keys()
    for key, expected in exact.items():
        assert ours[key].dtype == theirs[key].dtype, key
        largest = expected.abs().max()
        allowed = 2 * (theirs[key].double() - expected).abs().max() + slack * largest + 1e-30
        error = (ours[key].double() - expected).abs().max()
        assert error <= allowed, f"{key}: {error:.2e}, {allowed:.2e} allowed, of {largest:.2e}"
