"""Size and length of the trainings from scratch, as flags."""

import dataclasses

from imagepiece_jax.errors import InputError, suggestion

# In the order of their runs: DynamicViT's starts from the dense model's of its seed.
SYSTEMS = (
    *("dense_conv", "dense_patch", "imagepiece_conv", "imagepiece_patch"),
    *("dropping_conv", "dropping_patch", "evit", "tome", "dynamicvit", "random"),
)


def _option(default, kind, help_text):
    return dataclasses.field(
        default=default, metadata={"kind": kind, "help": f"scratch: {help_text}"}
    )


@dataclasses.dataclass(frozen=True)
class Options:
    """Size and length of the trainings; the fields are flags of the command."""

    image_size: int = _option(64, int, "pixels a side")
    canvas: int = _option(128, int, "pixels a side that training images are held at")
    patch: int = _option(8, int, "pixels a side of a patch")
    width: int = _option(128, int, "of a token")
    depth: int = _option(6, int, "blocks")
    heads: int | None = _option(None, int, "of attention; default: one for 64 channels")
    keep_rate: float = _option(0.8, float, "of ImagePiece, whose cost the others have")
    systems: str | None = _option(
        None, str, f"trained, separated by commas; default: {','.join(SYSTEMS)}"
    )
    epochs: int = _option(50, int, "of a run")
    hours: float | None = _option(None, float, "of all runs: epochs are cut to fit")
    minutes: float | None = _option(None, float, "of this call: runs that fit in")
    page: str | None = _option(None, str, "the page; default: OUT/scratch.md")
    train_batch_size: int = _option(128, int, "images a step")
    peak_lr: float = _option(1e-3, float, "learning rate after the warm-up")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value > 0:
                raise InputError(
                    f"--{field.name} is {value}; allowed are numbers above 0"
                )
        if self.keep_rate > 1:
            raise InputError(
                f"--keep_rate is {self.keep_rate}; allowed are shares up to 1"
            )
        if self.canvas < self.image_size:
            raise InputError(
                f"--canvas is {self.canvas}; allowed are --image_size, "
                f"{self.image_size}, or more"
            )
        for name in self.chosen:
            if name not in SYSTEMS:
                listed = f"allowed are {', '.join(SYSTEMS)}"
                hint = suggestion(name, SYSTEMS, listed)
                raise InputError(f"--systems is {name!r}; {hint}")
        if "dynamicvit" in self.chosen and "dense_conv" not in self.chosen:
            raise InputError(
                "--systems has dynamicvit, whose runs start from those of dense_conv; "
                "allowed is both"
            )
        if self.depth < 4:
            raise InputError(
                f"--depth is {self.depth}; allowed are 4 or more, which ImagePiece's "
                "schedule needs"
            )

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the systems to train, in the order of their runs."""
        if self.systems is None:
            return SYSTEMS
        named = self.systems.split(",")
        order = {name: place for place, name in enumerate(SYSTEMS)}
        return tuple(sorted(set(named), key=lambda name: order.get(name, -1)))
