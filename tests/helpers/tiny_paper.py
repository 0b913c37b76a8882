"""A tiny model on digits, with four blocks, ImagePiece's fewest."""

import contextlib
import pathlib

from experiments.models import OffTheShelf
from experiments.paper import Study, StudyImages
from experiments.study import code_versions
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.sources.registry import open_source
from imagepiece_jax.evaluation.labeled_images import ReadOptions
from imagepiece_jax.evaluation.result_cache import ResultCache
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.weights.save import save
from tests.helpers import named_models, tiny_vit

FIELDS = {"name": "vit_mini", "num_classes": 10, "mlp_ratio": 2.0}
FIELDS |= {"embed_dim": 8, "depth": 4, "num_heads": 2}
PROGRAMS = {}  # shared by all studies, because most models are equal


def pretrained(folder, seed=0, **fields):
    """Save random weights of a dense model in a folder."""
    fields = FIELDS | fields
    model = create_model(named_models.config(**fields))
    variables = tiny_vit.fill(variable_shapes(model), seed)
    path = save(Pretrained(model, variables), folder / f"tiny{seed}")
    return tiny_vit.loaded_model(path, variables=variables, seed=seed, **fields)


def images(count=24):
    return StudyImages(
        name="digits",
        source=open_source("digits", "val", num_classes=10).evenly_spaced(count),
        preprocessing=Preprocessing(16, resize="none"),
        options=ReadOptions(limit=count, batch_size=12, workers=0, threads=0),
    )


@contextlib.contextmanager
def study(folder, weights=None, **given):
    """A Study of the tiny model `weights`, without speeds; given: more fields."""
    if weights is not None:
        given["models"] = OffTheShelf(weights)
    fields = {"images": images(), "programs": PROGRAMS, **given}
    cache = ResultCache(folder, versions=code_versions())
    yield Study(out=pathlib.Path(folder), cache=cache, **fields)
