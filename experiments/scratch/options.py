"""Size and length of the trainings from scratch."""

import dataclasses

from experiments.settings import Settings, flag
from imagepiece_jax.common.fields import count, number, optional, positive, text
from imagepiece_jax.errors import one_of

# In the order of their runs: DynamicViT's starts from the dense model's of its seed.
SYSTEMS = (
    *("dense_conv", "dense_patch", "imagepiece_conv", "imagepiece_patch"),
    *("dropping_conv", "dropping_patch", "evit", "tome", "dynamicvit", "random"),
    *("evit_proportional", "tome_proportional"),
)


@dataclasses.dataclass(frozen=True)
class Options(Settings):
    """Size and length of the trainings."""

    image_size: int = flag(count(64, least=1), "pixels a side")
    patch: int = flag(count(8, least=1), "pixels a side of a patch")
    width: int = flag(count(128, least=1), "of a token")
    # ImagePiece's schedule needs four blocks.
    depth: int = flag(count(6, least=4), "blocks")
    heads: int = flag(count(0), "of attention; 0: one for 64 channels")
    keep_rate: float = flag(
        number(0.8, above=0, most=1), "of ImagePiece, whose cost the others have"
    )
    systems: str | None = flag(
        optional(text()), f"trained, separated by commas; default: {','.join(SYSTEMS)}"
    )
    epochs: int = flag(count(50, least=1), "of a run")
    page: str | None = flag(optional(text()), "the page; default: OUT/scratch.md")
    train_batch_size: int = flag(count(128, least=1), "images a step")
    peak_lr: float = flag(positive(1e-3), "learning rate after the warm-up")

    def __post_init__(self):
        super().__post_init__()
        for name in self.chosen:
            one_of("--systems", name, SYSTEMS)
        if "dynamicvit" in self.chosen and "dense_conv" not in self.chosen:
            self.refuse("systems", "dynamicvit with dense_conv, which it starts from")

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the systems to train, in the order of their runs."""
        if self.systems is None:
            return SYSTEMS
        named = self.systems.split(",")
        order = {name: place for place, name in enumerate(SYSTEMS)}
        return tuple(sorted(set(named), key=lambda name: order.get(name, -1)))
