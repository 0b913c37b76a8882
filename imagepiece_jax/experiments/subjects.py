"""Which trained model is asked? A weights file or the folder of a run, and its fields.

The weights tell the model (models.pretrained), --config what a file does not say.
Of a run it is always the last checkpoint: the best one was chosen on the images that
the figures are about.
"""

import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import pretrained, registry, summary
from imagepiece_jax.models.pretrained import DENSE, MODEL_FIELDS, completed
from imagepiece_jax.training import initial_weights

__all__ = ["DENSE", "MODEL_FIELDS", "Subject", "changed", "completed", "of", "runs"]


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """Weights, and the fields of the models that they fit.

    fields: of zoo.create_model, without reduction; reduction: what they were trained
    with; seed: of that training.
    """

    path: pathlib.Path
    fields: dict[str, Any]
    reduction: dict[str, Any]
    seed: int = 0

    def model(self, reduction=None):
        """The model with this reduction; None: with its own."""
        reduction = dict(self.reduction if reduction is None else reduction)
        own = {k: reduction.pop(k) for k in MODEL_FIELDS if k in reduction}
        return registry.create_model(reduction=reduction, **(self.fields | own))

    def gmacs(self, reduction=None):
        """GMACs of one image through `model(reduction)`."""
        return registry.model_macs(self.model(reduction), self.image_size) / 1e9

    def use(self, reduction):
        """In what sense figures with `reduction` are this model's, in a word."""
        same = completed(reduction) == completed(self.reduction)
        return "as trained" if same else "off-the-shelf"

    def variables(self, model):
        """(variables for `model`, whether it has selectors that were never trained).

        Selectors that the weights lack are fresh: their figures say nothing about
        their method.
        """
        like, ours = summary.shapes(model, self.image_size), self._loaded
        untrained, drawn = self._lacks(like), {}
        if untrained:
            drawn = initial_weights.fresh(model, self.image_size, self.seed)["params"]
        params = {name: (drawn | ours["params"]).get(name) for name in like["params"]}
        found = {"params": params} | {k: v for k, v in ours.items() if k != "params"}
        if _shapes(found) != _shapes(like):
            raise InputError(
                f"weights {self.path} do not fit a model with stem {model.stem!r} and "
                f"{len(model.plan)} blocks; allowed are models of their own shapes"
            )
        return found, untrained

    def untrained(self, reduction):
        """Whether `reduction` has selectors that the weights lack."""
        return self._lacks(summary.shapes(self.model(reduction), self.image_size))

    def _lacks(self, like):
        names = (name for name in like["params"] if name.startswith("reducer"))
        return any(name not in self._loaded["params"] for name in names)

    @functools.cached_property
    def _loaded(self):
        like = summary.shapes(self.model(), self.image_size)
        return initial_weights.load(self.path, like, which="latest")

    @functools.cached_property
    def digest(self):
        """A few letters that other weights have not."""
        total = hashlib.sha256()
        leaves = jax.tree_util.tree_leaves_with_path(self._loaded)
        for path, leaf in leaves:
            total.update(jax.tree_util.keystr(path).encode())
            total.update(np.ascontiguousarray(leaf).tobytes())
        return total.hexdigest()[:16]

    @property
    def image_size(self):
        return self.fields["image_size"]

    @property
    def stem(self):
        return self.fields["stem"]


def changed(reduction, usual=None):
    """`reduction` with those fields alone that differ from `usual`.

    None: from its method's defaults.
    """
    usual = completed(usual or {"name": reduction["name"]})
    whole = completed(reduction)
    return {k: v for k, v in whole.items() if k == "name" or v != usual.get(k)}


def of(path, config=None, dtype=None, normalization=None):
    """The Subject of a weights file or a run's folder.

    `config` tells what a file does not, `dtype` what the layers compute in,
    `normalization` the mean and std of the images. InputError where the model cannot be
    told, or one of these contradicts the weights.
    """
    config = None if config is None else config.to_dict()
    told = _told(path, config)
    if config is None:
        fields, reduction = told.fields, told.reduction
        seed = (told.config or {}).get("seed", 0)
    else:
        fields, reduction = told.under(config)
        seed = config["seed"]
    fields = dict(told.changed(fields | pretrained.typed(normalization)))
    if "mean" not in fields:
        print(f"note: {pretrained.untold(path)}", flush=True)
        fields |= pretrained.IMAGENET
    # Of training, of the device, or of the method; the rest makes the model.
    for name in ("drop_path_rate", "trace_source", "kernels", "prop_attn"):
        fields.pop(name, None)
    subject = Subject(
        path=told.path,
        fields=fields | ({"dtype": dtype} if dtype else {}),
        reduction=completed(reduction),
        seed=seed,
    )
    subject.model()  # fields that make no model are a mistake, told now
    return subject


def _told(path, config):
    """What the weights tell; sizes whose heads are not of 64 channels need a config."""
    try:
        return pretrained.read(path, pretrained.heads(config))
    except InputError as error:
        if config is None and "num_heads=.." in str(error):
            raise InputError(f"{error}; or name the model by --config") from error
        raise


def runs(folder, dtype=None):
    """Subjects of all runs in `folder`, by name. InputError if there are none."""
    found = sorted(pathlib.Path(folder).glob(f"*/{pretrained.RUN_CONFIG}"))
    if not found:
        raise InputError(
            f"--runs {folder} holds no run; allowed is a folder whose folders are runs "
            "of train.py"
        )
    return [of(path.parent, dtype=dtype) for path in found]


def _shapes(tree):
    return jax.tree.map(lambda leaf: getattr(leaf, "shape", None), tree)
