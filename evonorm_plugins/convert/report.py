"""What a conversion did."""

from dataclasses import dataclass, field


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
    replaced: dict = field(default_factory=dict)
    affine: dict = field(default_factory=dict)
    left: dict = field(default_factory=dict)
    removed: dict = field(default_factory=dict)
    stays: dict = field(default_factory=dict)
    rewritten: tuple = ()

    def counts(self):
        """How many of each there are."""
        keys = ("replaced", "affine", "left", "stays", "rewritten")
        counts = {key: len(getattr(self, key)) for key in keys}
        return {**counts, "removed": sum(self.removed.values())}

    def __str__(self):
        sections = [
            (f"norm and activation to {self.name}", "+", self.replaced),
            ("norm to affine transform", "before", self.affine),
            ("norm left", ":", self.left),
            ("activation stays", "after", self.stays),
            ("forward rewritten", "", dict.fromkeys(self.rewritten, "")),
        ]
        lines = []
        for title, joint, entries in sections:
            lines.append(f"{title}: {len(entries)}")
            for key, value in entries.items():
                separator = joint if joint == ":" else f" {joint} "
                lines.append(
                    f"  {key or 'the model'}{separator}{value}".replace(":", ": ").rstrip()
                )
        lines.append(f"activations removed: {self.counts()['removed']}")
        return "\n".join(lines)
