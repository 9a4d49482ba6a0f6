"""What a conversion did."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Report:
    """What :func:`convert` did, by names of modules in the model.

    Attributes:
        name: of the layer.
        replaced: norm -> activation, for those replaced by a norm-activation layer.
        affine: norm -> what follows it, for those replaced by the affine transform.
        left: norm -> why it is left as it was.
        removed: activation -> how many calls of it are gone.
        stays: activation -> what precedes it, for those that stay.
        rewritten: modules whose forward was replaced by one without some activations.
    """

    name: str
    replaced: dict[str, str] = field(default_factory=dict)
    affine: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)
    rewritten: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """How many of each there are."""
        keys = ("replaced", "affine", "left", "stays", "rewritten")
        counts = {key: len(getattr(self, key)) for key in keys}
        return {**counts, "removed": sum(self.removed.values())}

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "rewritten": list(self.rewritten), "counts": self.counts()}

    def __str__(self) -> str:
        counts = self.counts()
        sections: list[tuple[str, str, dict[str, str]]] = [
            (f"norms with an activation, now {self.name}", " + ", self.replaced),
            ("norms without, now the affine transform", " before ", self.affine),
            ("norms left", ": ", self.left),
            ("activations that stay", " after ", self.stays),
        ]
        lines = []
        for title, joint, entries in sections:
            lines.append(f"{title}: {len(entries)}")
            lines += [f"  {key or 'the model'}{joint}{value}" for key, value in entries.items()]
        lines.append(f"activations removed: {counts['removed']}")
        if self.rewritten:
            lines.append(
                f"forward rewritten: {', '.join(n or 'the model' for n in self.rewritten)}"
            )
        if not self.replaced:
            lines.append("No activation follows a norm in this model: nothing normalizes any more.")
        return "\n".join(lines)
