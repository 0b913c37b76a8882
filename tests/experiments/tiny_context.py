"""A tiny model on digits; four blocks, the fewest that ImagePiece's schedule takes."""

from experiments.context import Context, OffTheShelf, Settings
from experiments.images import Images
from imagepiece_jax.common.timer import Rules
from imagepiece_jax.evaluate.cache import ResultCache
from imagepiece_jax.models.config import create_model
from imagepiece_jax.models.variables import variable_shapes
from tests.models import tiny

SIZE = {"patch_size": 2, "embed_dim": 8, "depth": 4, "num_heads": 2}
FIELDS = {
    "name": "vit_mini",
    "image_size": 16,
    "num_classes": 10,
    "stem": "patch",
    "gelu": "exact",
    "class_token": True,
    "mlp_ratio": 2.0,
    "dtype": "float32",
    **SIZE,
}

# Words of commands for a config whose model this is, with steps that fit it.
MODEL = [
    *("--config", "configs/quickstart.py", "--config.model.stem=patch"),
    *(f"--config.model.{name}={value}" for name, value in SIZE.items()),
    *("--config.model.mlp_ratio=2", "--config.reduction.merge_blocks=(0,)"),
    "--config.reduction.prune_blocks=(2,)",
]

PROGRAMS = {}  # of all contexts, whose models are mostly the same


def pretrained(folder, seed=0, **fields):
    """Random weights, as a file that a dense model fits."""
    fields = FIELDS | fields
    model = create_model(**fields)
    variables = tiny.fill(variable_shapes(model, 16), seed)
    path = folder / f"tiny{seed}.npz"
    tiny.write(path, variables)
    return tiny.loaded(path, variables=variables, seed=seed, **fields)


def images(count=24):
    """Some of the digits that training never sees."""
    options = {"crop": {"resize": "none"}, "batch_size": 12, "workers": 0}
    return Images.open("digits", 10, 16, limit=count, **options)


def context(folder, weights=None, **given):
    """A Context of the tiny model `weights`, without speeds.

    given: `models`, `images`, and fields of its Settings
    """
    shelf = None if weights is None else OffTheShelf(weights)
    models = given.pop("models", shelf)
    used = given.pop("images") if "images" in given else images()
    quick = {"out": str(folder), "speed": False, "rules": Rules(2, 1, 0.0)}
    settings = Settings(**quick | given)
    return Context(ResultCache(folder), settings, models, used, PROGRAMS)
