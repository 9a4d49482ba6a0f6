"""One step of training, and everything that it changes."""

import contextlib

import torch
from torch.nn.parallel import DistributedDataParallel

from biggan.augment import NUMBERS, augmented
from biggan.config import batch_per_rank
from biggan.discriminator import Discriminator
from biggan.generator import Generator
from biggan.losses import accuracies, discriminator_loss, generator_loss, orthogonal_penalty
from biggan.spectral import power_iteration
from evonorm_plugins.errors import NonFiniteError
from evonorm_plugins.layers import moving_statistics_of
from evonorm_plugins.training.ema import EMA
from evonorm_plugins.training.memory import check_memory, weights_size
from evonorm_plugins.training.precision import autocast
from evonorm_plugins.training.seeds import generator_of, mixed_seed


def check_size(config, ranks):
    """Raise :class:`ConfigError` where a run cannot fit into memory, before it is tried.

    Args:
        config, ranks: as for :class:`Trainer`.
    """
    # Weights, gradients and two moments of Adam each; the average of the generator.
    needed = 5 * weights_size(lambda: Generator(config))
    needed += 4 * weights_size(lambda: Discriminator(config))
    check_memory(needed, f"channels={config.channels}: the networks", ranks.device)
    batch = batch_per_rank(config, ranks.size)
    pixels = config.resolution**2
    # The widest feature maps at full resolution are kept for the backward pass.
    narrowest = min(config.channel_multipliers or [1]) * config.channels
    size = 2 if config.precision != "fp32" else 4
    what = f"batch_size={config.batch_size}: {batch} images at a time"
    check_memory(batch * pixels * narrowest * size, what, ranks.device)
    check_memory(4 * config.batch_size * config.z_size, f"{what}, z_size={config.z_size}")
    rows = config.sample_rows * 3 * pixels
    check_memory(rows, f"sample_rows={config.sample_rows}")
    if config.extractor:
        check_memory(32 * config.score_samples, f"score_samples={config.score_samples}")


class Trainer:
    """Generator, discriminator, average, optimizers, and the step that changes them.

    Latents and classes of an update are drawn for its whole batch on every rank, from the seed and
    the number of the update; a rank takes its part. So ranks and accumulations divide the work and
    change nothing else, as far as norms without batch statistics are concerned.

    Args:
        config: checked, with ``num_classes``.
        ranks: :class:`evonorm_plugins.training.ranks.Ranks`.
    """

    def __init__(self, config, ranks):
        self.config, self.ranks, self.device = config, ranks, ranks.device
        self.batch = batch_per_rank(config, ranks.size)
        torch.manual_seed(mixed_seed(config.seed) % 2**63)
        self.generator = Generator(config).to(self.device)
        self.discriminator = Discriminator(config).to(self.device)
        self.ema = EMA(
            self.generator, config.ema_decay, moving_statistics_of, start=config.ema_start
        )
        self.g_optimizer = self._adam(self.generator, config.g_lr)
        self.d_optimizer = self._adam(self.discriminator, config.d_lr)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=config.precision == "fp16", init_scale=2.0**12
        )
        self.step = 0
        if config.compile:
            self.generator.compile()
            self.discriminator.compile()
        self._g_parallel = self._parallel(self.generator)
        self._d_parallel = self._parallel(self.discriminator)

    def _adam(self, module, lr):
        c = self.config
        return torch.optim.Adam(
            module.parameters(), lr, betas=(c.beta1, c.beta2), eps=c.adam_eps, fused=True
        )

    def _parallel(self, module):
        if self.ranks.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # Buffers are the same on every rank without being sent: singular vectors come from the same
        # weights, cross-replica statistics are shared already.
        return DistributedDataParallel(
            module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    @property
    def images_per_step(self):
        """Real images that a step takes from the data, over all ranks."""
        return self.config.batch_size * self.config.d_steps

    def train_step(self, batches):
        """``d_steps`` updates of the discriminator and one of the generator.

        Args:
            batches: an iterator of ``(uint8 images, classes)`` of this rank.

        Returns:
            Names and a tensor of this rank's losses and accuracies, and of the gradients' norms.

        Raises:
            NonFiniteError: before the update that it would spoil.
        """
        config = self.config
        for k in range(config.d_steps):
            d_numbers, d_norm = self._update_discriminator(batches, k)
        g_loss, g_norm = self._update_generator()
        self.step += 1
        self.ema.update(self.step)
        values = torch.cat([d_numbers, torch.stack([g_loss, d_norm, g_norm])])
        names = ("d_loss", "d_accuracy_real", "d_accuracy_fake", "d_score_real", "d_score_fake")
        return (*names, "g_loss", "d_grad_norm", "g_grad_norm"), values

    def _update_discriminator(self, batches, k):
        config, totals = self.config, 0
        self.generator.train(), self.discriminator.train()
        self.discriminator.requires_grad_(True)
        self.d_optimizer.zero_grad(set_to_none=True)
        for last, z, y, numbers in self._draws(k):
            images, labels = next(batches)
            real = images.to(self.device, non_blocking=True).float().div_(127.5).sub_(1)
            labels = labels.to(self.device, non_blocking=True)
            with torch.no_grad(), self._autocast():
                fake = self.generator(z, y)
            with self._sync(self._d_parallel, last), self._autocast():
                both = self._augmented(torch.cat([fake, real]), numbers.flatten(0, 1))
                scores = self._d_parallel(both, torch.cat([y, labels])).float()
                fake_score, real_score = scores.split(len(z))
                loss = discriminator_loss(real_score, fake_score)
                self.scaler.scale(loss / config.accumulations).backward()
            scores = torch.stack([real_score.mean(), fake_score.mean()])
            numbers = torch.cat([loss[None], accuracies(real_score, fake_score), scores])
            totals = totals + numbers.detach() / config.accumulations
        norm = self._apply(self.d_optimizer, self.discriminator, totals[0], "discriminator's")
        return totals, norm

    def _update_generator(self):
        config, total = self.config, 0
        self.discriminator.requires_grad_(False)
        self.g_optimizer.zero_grad(set_to_none=True)
        for last, z, y, numbers in self._draws(config.d_steps):
            with self._sync(self._g_parallel, last), self._autocast():
                # Not through the discriminator's wrapper: it has no gradient to share here.
                fake = self._augmented(self._g_parallel(z, y), numbers[0])
                loss = generator_loss(self.discriminator(fake, y).float())
                total = total + loss.detach() / config.accumulations
                loss = loss / config.accumulations
                if config.orthogonal and last:
                    with torch.autocast(self.device.type, enabled=False):
                        loss = loss + config.orthogonal * orthogonal_penalty(self.generator)
                self.scaler.scale(loss).backward()
        norm = self._apply(self.g_optimizer, self.generator, total, "generator's")
        return total, norm

    def _draws(self, k):
        """``(whether it is the last, latents, classes, numbers)`` of an update's accumulations.

        The numbers are those of augmentation, ``(2, images, NUMBERS)``: of generated images, of
        real ones.
        """
        c, number = self.config, self.step * (self.config.d_steps + 1) + k
        random = generator_of(c.seed, number, 2)
        z = torch.randn(c.batch_size, c.z_size, generator=random)
        y = torch.randint(c.num_classes, (c.batch_size,), generator=random)
        random = generator_of(c.seed, number, 3)
        u = torch.rand(2, c.batch_size, NUMBERS, generator=random)
        for j in range(c.accumulations):
            start = (j * self.ranks.size + self.ranks.rank) * self.batch
            part = slice(start, start + self.batch)
            own = (t.to(self.device) for t in (z[part], y[part], u[:, part]))
            yield j == c.accumulations - 1, *own

    def _augmented(self, images, numbers):
        """What the discriminator sees of images."""
        policies = self.config.augment
        return augmented(images, numbers, policies) if policies else images

    def _autocast(self):
        return autocast(self.config.precision, self.device)

    def _sync(self, parallel, last):
        if last or self.ranks.size == 1:
            return contextlib.nullcontext()
        return parallel.no_sync()

    def _apply(self, optimizer, module, loss, whose):
        """Take the step unless something is not finite; returns the norm of the gradients."""
        self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in module.parameters() if p.grad is not None], foreach=True
        )
        # Every rank has the same gradients, so every rank stops. Half precision may overflow now
        # and then: the scaler leaves such a step out.
        checked = loss if self.scaler.is_enabled() else torch.stack([loss, norm])
        if not torch.isfinite(checked).all():
            raise NonFiniteError(self._culprit(module, loss, norm, whose))
        self.scaler.step(optimizer)
        self.scaler.update()
        power_iteration(module)
        return norm

    def _culprit(self, module, loss, norm, whose):
        found = [f"the {whose} loss is {loss.item()}", f"its gradients' norm {norm.item()}"]
        both = (("generator", self.generator), ("discriminator", self.discriminator))
        tensors = [(f"{name} {key}", t) for name, m in both for key, t in m.state_dict().items()]
        kind = "first tensor that is not finite"
        broken = next((name for name, t in tensors if not torch.isfinite(t).all()), None)
        if broken is None:
            kind = "no weight is; first gradient that is not finite"
            broken = next(
                (
                    key
                    for key, p in module.named_parameters()
                    if p.grad is not None and not torch.isfinite(p.grad).all()
                ),
                "none: an input or an activation overflowed",
            )
        return f"step {self.step + 1}: {' and '.join(found)}; {kind}: {broken}"

    # ---- state ----

    def state(self):
        """Weights, optimizers, scaler and step, for a checkpoint."""
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.module.state_dict(),
            "g_optimizer": self.g_optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state):
        """Go on from what :meth:`state` returned."""
        for key in ("generator", "discriminator", "g_optimizer", "d_optimizer", "scaler"):
            if key != "scaler" or state[key]:
                getattr(self, key).load_state_dict(state[key])
        self.ema.module.load_state_dict(state["ema"])
        self.step = state["step"]
