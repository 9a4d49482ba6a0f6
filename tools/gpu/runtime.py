"""What kernels must go through on a device: graphs, streams, devices, scaled losses, large tensors.

In a dry run torch's stand-ins for the CPU take the place of streams, and calls that of a graph.
"""

import copy

import torch
from torch import nn

from evonorm_plugins.registry import get_norm_act
from gpu.accuracy import NAMES, Case
from gpu.sections import NotHere

SHAPE, DRY_SHAPE = (2, 64, 28, 28), (1, 4, 2, 3)
# More elements than 32 bits count, in float16: 4.3 GiB each.
LARGE, DRY_LARGE = (2, 33, 5800, 5800), (2, 3, 2, 2)
LARGE_TENSORS = 8  # in memory at once, with room for what is not ours
STEPS = 5


def run_runtime(section):
    shape = DRY_SHAPE if section.dry_run else SHAPE
    names = ("EvoNormS0",) if section.dry_run else NAMES
    device = section.device
    for name in names:
        section.check(f"CUDA graph: {name}", same_in_a_graph, device, name, shape)
        section.check(f"streams: {name}", same_on_streams, device, name, shape)
    for name in names[:1]:
        section.check(f"second device: {name}", same_on_second_device, section.dry_run, name, shape)
    for name in names:
        section.check(
            f"AMP with GradScaler: {name}", trains_with_amp, device, name, section.dry_run
        )
    large = DRY_LARGE if section.dry_run else LARGE
    for layout in (torch.contiguous_format, torch.channels_last):
        what = f"2^31 elements: EvoNormS0 {str(layout)[6:]}"
        section.check(what, each_sample_alone, device, large, layout)


def drawn(device, name, shape):
    """A function that runs a layer forward and backward on tensors of its own."""
    case = Case(device, name, shape, torch.float32, "contiguous")
    layer = get_norm_act(name, shape[1], impl="triton")
    layer.load_state_dict(case.state)
    layer.to(device)
    x = case.x.requires_grad_()

    def call():
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], case.dy)]

    return call


def differ(found, expected):
    """None, or which results are not the same bits: y, x, then the parameters."""
    pairs = zip(found, expected, strict=True)
    bad = [str(k) for k, (f, e) in enumerate(pairs) if not torch.equal(f.to(e.device), e)]
    return f"other bits in results {', '.join(bad)}" if bad else None


def same_in_a_graph(device, name, shape):
    call = drawn(device, name, shape)
    expected = [t.clone() for t in call()]
    if device == "cpu":
        return differ(call(), expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    for tensor in found:
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return differ(found, expected)


def same_on_streams(device, name, shape):
    """On one that others do not wait for, while the usual one has work of its own."""
    streams = torch.get_device_module(device)
    call = drawn(device, name, shape)
    expected = call()
    busy = torch.ones(64, 64, device=device)
    stream = streams.Stream()
    stream.wait_stream(streams.current_stream())
    for _ in range(3):
        busy = busy @ busy / 64
        with streams.stream(stream):
            found = call()
        wrong = differ_after(stream, streams, found, expected)
        if wrong:
            return wrong
    return None


def differ_after(stream, streams, found, expected):
    streams.current_stream().wait_stream(stream)
    streams.synchronize()
    return differ(found, expected)


def same_on_second_device(dry_run, name, shape):
    if dry_run:
        return differ(drawn("cpu", name, shape)(), drawn("cpu", name, shape)())
    if torch.cuda.device_count() < 2:
        raise NotHere("there is one device")
    expected = drawn("cuda:0", name, shape)()
    # Without making it the current one: layers have to do that.
    wrong = differ(drawn("cuda:1", name, shape)(), expected)
    return wrong or differ(drawn("cuda:0", name, shape)(), expected)


def trains_with_amp(device, name, dry_run):
    """Losses of float16 training with a scaled loss, beside those of plain torch."""
    side, channels = (4, 4) if dry_run else (32, 64)
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1),
        get_norm_act(name, channels, impl="torch"),
        nn.Conv2d(channels, 3, 1),
    ).to(device)
    fused = copy.deepcopy(plain)
    fused[1].impl = "triton"
    # float16 is what a scaler is for; on a CPU its convolutions are slow, and bfloat16 will do.
    dtype = torch.bfloat16 if device == "cpu" else torch.float16
    x, target = torch.randn(2, 2, 3, side, side, device=device)
    losses = []
    for model in (plain, fused):
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        scaler = torch.amp.GradScaler(device)
        for _ in range(2 if dry_run else STEPS):
            with torch.autocast(device, dtype):
                loss = (model(x) - target).float().square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
    half = len(losses) // 2
    expected, found = torch.tensor(losses[:half]), torch.tensor(losses[half:])
    if not found.isfinite().all() or not torch.allclose(found, expected, rtol=2e-2, atol=1e-3):
        return f"losses {found.tolist()}, of plain torch {expected.tolist()}"
    return None if found[-1] < found[0] else f"the loss does not fall: {found.tolist()}"


def each_sample_alone(device, shape, layout):
    """A sample beyond what 32 bits count is as it is alone."""
    if device == "cuda":
        needed = LARGE_TENSORS * 2 * torch.Size(shape).numel()
        free, _ = torch.cuda.mem_get_info()
        if free < needed:
            raise NotHere(f"{free >> 30} GiB are free, {needed >> 30} needed")
    torch.manual_seed(0)
    layer = get_norm_act("EvoNormS0(groups=3)", shape[1], impl="triton").to(device)
    x = torch.randn(shape, device=device, dtype=torch.float16).to(memory_format=layout)
    results = []
    for own in (x, x[1:]):
        own = own.detach().requires_grad_()
        y = layer(own)
        # y for dy: of the sizes that are needed, and there.
        (dx,) = torch.autograd.grad(y, own, y.detach())
        results.append((y.detach()[-1:], dx[-1:]))
        del y, dx
    return None if all(torch.allclose(*pair) for pair in zip(*results, strict=True)) else "differs"
