"""Files of a run.

``checkpoint.pt`` goes on with training: config, class names, generator, discriminator, average
(``ema``), both optimizers, scaler, random states of every rank, position in the data. ``best.pt``
is for others: config, class names, the averaged generator and its score.
"""

from evonorm_plugins.training.checkpoint import Format

FORMAT = Format("evonorm-plugins biggan", needs={"config": dict, "classes": list, "step": int})
save, load = FORMAT.save, FORMAT.load
