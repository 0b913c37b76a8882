"""Which trained model is asked? A weights file or the folder of a run, and its fields.

The model is told by a run's config.json, by --config, or by the shapes of the tensors.
Of a run it is always the last checkpoint: the best one was chosen on the images that
the figures are about.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import pathlib
from typing import Any

import jax
import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import summary, zoo
from imagepiece_jax.models.recognise import recognise
from imagepiece_jax.models.weight_files import read_state_dict
from imagepiece_jax.reduction import methods
from imagepiece_jax.training import weights
from imagepiece_jax.training.record import CONFIG

DENSE = {"name": "none"}
# What a reduction may name beside the fields of its method's recipe.
MODEL_FIELDS = ("prop_attn",)


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
        return zoo.create_model(reduction=reduction, **(self.fields | own))

    def gmacs(self, reduction=None):
        """GMACs of one image through `model(reduction)`."""
        return zoo.model_macs(self.model(reduction), self.image_size) / 1e9

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
            drawn = weights.fresh(model, self.image_size, self.seed)["params"]
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
        return weights.load(self.path, like, which="latest")

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


def completed(reduction):
    """All fields that decide what a reduction does, with the recipe's defaults."""
    given = dict(reduction or DENSE)
    name = given.pop("name", "none")
    method = methods.find(name, **{k: given[k] for k in given if k not in MODEL_FIELDS})
    defaults = {
        parameter.name: parameter.default
        for parameter in inspect.signature(method.recipe).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    }
    meant = {field: method.model_fields.get(field, False) for field in MODEL_FIELDS}
    known = {k: v for k, v in given.items() if k in defaults or k in MODEL_FIELDS}
    known = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
    return {"name": name, **meant, **defaults, **known}


def changed(reduction, usual=None):
    """`reduction` with those fields alone that differ from `usual`.

    None: from its method's defaults.
    """
    usual = completed(usual or {"name": reduction["name"]})
    whole = completed(reduction)
    return {k: v for k, v in whole.items() if k == "name" or v != usual.get(k)}


def of(path, config=None, dtype=None):
    """The Subject of a weights file or a run's folder.

    `config` tells the model where it is given, `dtype` what its layers compute in.
    InputError where the model cannot be told, or the weights do not fit it.
    """
    path = pathlib.Path(path)
    if config is not None:
        config = config.to_dict()
    elif path.is_dir():
        config = _config_of_run(path)
    else:
        told = recognise_file(path)
        config = {name: told.pop(name) for name in ("image_size", "num_classes")}
        config |= {"model": told, "reduction": DENSE, "seed": 0}
    fields = config["model"] | {
        name: config[name] for name in ("image_size", "num_classes")
    }
    # Of training, of the device, or of the method; the rest makes the model.
    for name in ("drop_path_rate", "trace_source", "kernels", "prop_attn"):
        fields.pop(name, None)
    reduction = {k: v for k, v in config["reduction"].items() if v is not None}
    if config["model"].get("prop_attn") is not None:
        reduction["prop_attn"] = config["model"]["prop_attn"]
    subject = Subject(
        path=path,
        fields=fields | ({"dtype": dtype} if dtype else {}),
        reduction=completed(reduction),
        seed=config["seed"],
    )
    subject.model()  # fields that make no model are a mistake, told now
    return subject


def recognise_file(path):
    """Fields of the model that a weights file is for; InputError if they are unclear.

    Sizes whose heads are not of 64 channels need a config.
    """
    state = read_state_dict(path)
    try:
        return recognise(state)
    except InputError as error:
        hint = "name the model by --config"
        raise InputError(f"weights file {path}: {error}; or {hint}") from error


def runs(folder, dtype=None):
    """Subjects of all runs in `folder`, by name. InputError if there are none."""
    found = sorted(pathlib.Path(folder).glob(f"*/{CONFIG}"))
    if not found:
        raise InputError(
            f"--runs {folder} holds no run; allowed is a folder whose folders are runs "
            "of train.py"
        )
    return [of(path.parent, dtype=dtype) for path in found]


def _config_of_run(folder):
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        needed = ("model", "reduction", "image_size", "num_classes", "seed")
        return {name: config[name] for name in needed}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--weights {folder} is a folder without a run's {CONFIG} ({error!r}); "
            "allowed are a weights file and the folder of a run"
        ) from error


def _shapes(tree):
    return jax.tree.map(lambda leaf: getattr(leaf, "shape", None), tree)
