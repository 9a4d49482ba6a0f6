"""What became of every norm of a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FoldedNorm:
    """One norm or norm-activation layer.

    Fields:
        name: its path in the model.
        kind: its class.
        folded: what other layers do now: "norm" (all but an activation), "gamma and beta", "gamma",
            or "".
        into: paths of those layers.
        reason: why something stayed, or "".
    """

    name: str
    kind: str
    folded: str = ""
    into: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        done = f"{self.folded} into {', '.join(self.into)}" if self.folded else ""
        left = f"{'beta' if done else 'all'} stays, for {self.reason}" if self.reason else ""
        return f"{self.name} ({self.kind}): {'; '.join(filter(None, [done, left]))}"


@dataclass(frozen=True)
class FoldReport:
    """Every norm in the order they run, and numbers of parameters."""

    norms: tuple[FoldedNorm, ...]
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        counts = f"{self.parameters_before:,} parameters before, {self.parameters_after:,} after"
        return "\n".join([*map(str, self.norms), counts])
