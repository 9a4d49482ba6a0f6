"""Optimizers, and the learning rate of every step."""

import math

import torch


def make_optimizer(model, config, lr):
    """The optimizer that ``config`` names, with weights in two groups.

    Weight decay is for weights of more than one dimension alone, unless ``decay_all``: the authors'
    code (tensorflow/tpu, models/official/resnet/resnet_main.py) leaves out all parameters of norm
    layers, and biases are left out with them.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if config.decay_all or p.ndim > 1]
    others = [p for p in trained if not (config.decay_all or p.ndim > 1)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    eps = {} if config.optimizer_eps is None else {"eps": config.optimizer_eps}
    if config.optimizer == "sgd":
        momentum = {"momentum": config.momentum, "nesterov": config.nesterov}
        return torch.optim.SGD(groups, lr, foreach=True, **momentum)
    if config.optimizer == "rmsprop":
        options = {"alpha": config.alpha, "momentum": config.momentum, **eps}
        return torch.optim.RMSprop(groups, lr, foreach=True, **options)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(groups, lr, betas=(config.momentum, config.beta2), fused=True, **eps)


def scaled_lr(config, ranks):
    """``lr``, scaled linearly (Goyal et al., arXiv 1706.02677) where ``base_batch`` is given."""
    if config.base_batch is None:
        return config.lr
    return config.lr * config.batch_size * config.accumulations * ranks / config.base_batch


def lr_factor(config, step, steps, steps_per_epoch):
    """What the learning rate is multiplied with at ``step``, counted from 0, of ``steps``.

    The warm-up is linear up to 1; the schedules of the authors' code count from the first step,
    warm-up included. So does ``inverse_time``, which is that of Keras' optimizers with
    ``decay=decay / epochs``: 1 / (1 + decay / epochs * step), whenever the run ends.
    """
    warmup = config.warmup * steps_per_epoch
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    epoch, progress = step / steps_per_epoch, (step - warmup) / max(steps - warmup, 1)
    if config.schedule == "multistep":
        return config.decay ** sum(epoch >= m for m in config.milestones)
    if config.schedule == "exponential":
        return config.decay ** math.floor(epoch / config.decay_epochs)
    if config.schedule == "inverse_time":
        return 1 / (1 + config.decay / config.epochs * step)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "polynomial":
        return (1 - progress) ** config.power
    return 1.0
