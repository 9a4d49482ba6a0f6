"""One process of a group: runs the cases of ``test_cross_replica.py``; see ``sync_ranks.py``."""

import datetime
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from evonorm_plugins import convert_cross_replica, get_norm_act


def outcome(name, xs, dys, rank):
    """Output, gradients and buffers of a converted layer, on this rank's part."""
    layer = convert_cross_replica(get_norm_act(name, 4, dtype=xs[0].dtype))
    x = xs[rank].clone().requires_grad_()
    y = layer(x)
    gradients = torch.autograd.grad(y, [x, *layer.parameters()], dys[rank])
    buffers = {k: v for k, v in layer.named_buffers()}
    return {"y": y.detach(), "gradients": gradients, "buffers": buffers}


def main(folder, rank, ranks):
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=30),
    )
    cases = torch.load(folder / "inputs.pt")
    results = {key: outcome(*case, rank) for key, case in cases.items()}
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
