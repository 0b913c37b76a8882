"""The weights that a run starts from, and checks that they suit its config."""

import dataclasses

import jax
import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.models.positions import Positions
from imagepiece_jax.models.summary import fresh, shapes
from imagepiece_jax.pretrained import class_names as classes
from imagepiece_jax.pretrained.convert import Misfit
from imagepiece_jax.pretrained.hub import exists
from imagepiece_jax.pretrained.load import (
    normalization,
    restore,
    stated,
    unknown_normalization,
)
from imagepiece_jax.pretrained.runs import IMAGENET
from imagepiece_jax.training import from_config, run_dir
from imagepiece_jax.training.config import DistillConfig

# What no tensor tells of an architecture, and logits depend on.
UNTOLD = ("gelu", "norm_eps", "rotary", "pool", "pool_include_prefix")


def settle_normalization(config, workdir):
    """Fill in config.model.mean and std where both are empty.

    A run in `workdir` has its own; a new one takes those of the weights that it starts
    or learns from, else those of the model's name, else ImageNet's; of a teacher that
    may have others, only where it starts from none. Returns a line for each of these
    weights without them; none where nothing had to be filled in.
    """
    if config.model.get("mean") is not None or config.model.get("std") is not None:
        return []  # one alone is refused with the rest of the model
    found = {workdir: normalization(workdir)} if run_dir.took_steps(workdir) else {}
    if not found.get(workdir):
        paths = [*filter(None, (config.init.weights, config.teacher.weights))]
        any_teacher = not from_config.method(config).needs_teacher
        if DistillConfig.read(config).active and any_teacher:
            paths = paths[:1]
        found = {path: normalization(path) for path in paths}
    source = next((path for path, values in found.items() if values), None)
    usual, taken = IMAGENET, "ImageNet's"
    named = registry.facts(config.model.name)
    if config.model.name not in registry.MODELS and "mean" in named:
        usual, taken = named, f"{config.model.name}'s"
    with config.unlocked():
        for name in IMAGENET:
            config.model[name] = found[source][name] if source else usual[name]
    taken = f"{source}'s" if source else taken
    fields = "config.model.mean and config.model.std"
    unknown = (path for path, values in found.items() if not values and exists(path))
    return [unknown_normalization(path, fields, taken) for path in unknown]


def initial(config, model):
    """Variables that training starts from: `config.init.weights`, else fresh ones.

    The file is read before anything is compiled. InputError where it does not fit.
    """
    allowed = tuple(config.init.fresh)
    if not all(isinstance(name, str) for name in allowed):
        raise InputError(
            f"config.init.fresh is {allowed}; allowed are names of parts, such as head"
        )
    path = config.init.weights
    if allowed and not path:
        raise InputError(
            f"config.init.fresh is {allowed}, so the rest has been trained, but "
            "config.init.weights is empty: name a weights file or the folder of a "
            "run, or set config.init.fresh=() to train everything anew"
        )
    try:
        loaded = _restored(config, path, model, allowed) if path else None
    except Misfit as error:
        remedy = f" (to train it anew: config.init.fresh={error.fresh})"
        raise InputError(f"{error}{remedy * bool(error.fresh)}") from error
    if loaded and not allowed:
        return loaded
    drawn = fresh(model, config.image_size, config.seed)

    def choose(new, value):
        return new if isinstance(value, jax.ShapeDtypeStruct) else value

    return jax.tree.map(choose, drawn, loaded) if loaded else drawn


def as_given(config, dense):
    """Variables of the `dense` model from `config.init.weights`, none of them fresh.

    A model with fresh parts only guesses: InputError.
    """
    asked = "config.init.evaluate is True, but"
    if not config.init.weights:
        raise InputError(
            f"{asked} config.init.weights is empty: name a weights file or the folder "
            "of a run, or leave the evaluation out"
        )
    drawn = [name for name in config.init.fresh if not name.startswith("reducer")]
    if drawn:
        raise InputError(
            f"{asked} config.init.fresh has {drawn[0]!r}, and a dense model with fresh "
            "parts only guesses: allowed are config.init.evaluate=False, or all parts "
            "from the weights"
        )
    return _restored(config, config.init.weights, dense)


def teacher(config, model):
    """The frozen variables of the method's teacher, a dense `model`."""
    path = config.teacher.weights
    if not path:
        raise InputError(
            f"config.teacher.weights is empty, but {config.reduction.name!r} learns "
            "from a dense model: name a weights file or the folder of a run"
        )
    try:
        return _restored(config, path, model)
    except InputError as error:
        raise InputError(f"config.teacher.weights: {error}") from error


def _restored(config, path, model, allowed_fresh=()):
    """Variables of `model` at `path`. InputError if they do not fit, or if they were
    trained with a function, or for images, that no tensor tells and that is not ours.
    """
    size, said = config.image_size, stated(path)
    facts = registry.facts(said.name)
    theirs = facts | said.stated
    if said.name or said.arch:
        theirs |= vars(said.architecture)
    places = Positions.of(model, size, theirs.get("image_size"))
    if "resize" in theirs:  # by the code that these positions were trained for
        places = dataclasses.replace(places, how=theirs["resize"])
    loaded = restore(path, shapes(model, size), allowed_fresh, positions=places)
    if facts.get("embed_dim", model.embed_dim) != model.embed_dim:
        # The name's number of heads goes with a width that these tensors do not have.
        theirs["num_heads"] = said.num_heads or model.num_heads
    ours = {k: getattr(model.arch, k) for k in UNTOLD} | {"num_heads": model.num_heads}
    ours |= {k: tuple(config.model.get(k) or IMAGENET[k]) for k in IMAGENET}
    if "head" in allowed_fresh:
        del ours["pool"], ours["pool_include_prefix"]  # a new head's own matter
    for field in ours:
        if field in theirs and not _equal(theirs[field], ours[field]):
            raise InputError(
                f"config.model.{field} is {ours[field]!r}, but {path} was trained with "
                f"{theirs[field]!r}: allowed is {theirs[field]!r}"
            )
    return loaded


def _equal(one, other):
    """Whether values are the same, numbers to what float32 can hold of them."""
    if isinstance(one, tuple | float):
        return np.allclose(one, other, rtol=1e-6, atol=0)
    return one == other


def check_classes(config, workdir, names, resumed=False):
    """InputError where a run that this one learns from has other classes, by name.

    names: of the classes of `config.data`. Compared are the run in `workdir` that is
    resumed, the teacher, and what this run starts from if it keeps the head.
    """
    same = classes.SAME_CLASSES
    other = "choose another --workdir, or the data that it was trained on"
    compared = [("", workdir, other)] if run_dir.took_steps(workdir) else []
    if config.teacher.weights:
        compared.append(("config.teacher.weights ", config.teacher.weights, same))
    if config.init.weights and not resumed and "head" not in config.init.fresh:
        new = f"{same}, or a new head by config.init.fresh=('head',)"
        compared.append(("config.init.weights ", config.init.weights, new))
    data = f"config.data.name {config.data.name!r}"
    for field, path, allowed in compared:
        classes.check_classes(path, names, data, allowed, field=field)


def unnamed_classes(config, names):
    """The line on a start whose classes are not compared with `names` of the data.

    None where they are compared, and where the head is new.
    """
    if not config.init.weights or "head" in config.init.fresh:
        return None
    return classes.unnamed_classes(config.init.weights, names, config.data.name)
