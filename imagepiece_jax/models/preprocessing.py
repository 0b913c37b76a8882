"""What an image goes through before normalization: size, crop and interpolation."""

import dataclasses
import numbers

from imagepiece_jax.errors import InputError

CROP_MODES = ("center", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How weights were evaluated, in timm's terms.

    image_size: pixels a side, or (height, width), that the model gets. They are cut out
    of the center of an image resized to image_size / crop: its shorter side ("center")
    or both sides, whatever its aspect ("squash"). crop None: nothing is known.
    """

    image_size: int | tuple[int, int]
    crop: float | None = None
    crop_mode: str = "center"
    interpolation: str = "bicubic"

    def __post_init__(self):
        crop = self.crop
        number = isinstance(crop, numbers.Real) and not isinstance(crop, bool)
        if crop is not None and not (number and 0 < crop <= 1):
            raise InputError(
                f"crop is {crop!r}; allowed are numbers above 0 and up to 1"
            )
        for field, allowed in (
            ("crop_mode", CROP_MODES),
            ("interpolation", INTERPOLATIONS),
        ):
            if (value := getattr(self, field)) not in allowed:
                listed = ", ".join(allowed)
                raise InputError(f"{field} is {value!r}; allowed are {listed}")
