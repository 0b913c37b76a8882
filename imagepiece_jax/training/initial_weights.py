"""Which weights does a model start from, or get evaluated with?"""

import jax

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import class_names as classes
from imagepiece_jax.models import pretrained
from imagepiece_jax.models.pretrained import restore
from imagepiece_jax.models.summary import fresh, shapes


def settle_normalization(config, workdir):
    """Fill in config.model.mean and std where both are empty.

    The run in `workdir` has its own; a new one takes those that the weights tell which
    it starts or learns from, else ImageNet's. Returns a line for each of these weights
    that does not tell; none where nothing had to be filled in.
    """
    if config.model.get("mean") is not None or config.model.get("std") is not None:
        return []  # one alone is refused with the rest of the model
    told = {workdir: pretrained.normalization(workdir)}
    if not told[workdir]:
        paths = filter(None, (config.init.weights, config.teacher.weights))
        told = {path: pretrained.normalization(path) for path in paths}
    teller = next((path for path, found in told.items() if found), None)
    with config.unlocked():
        for name, usual in pretrained.IMAGENET.items():
            config.model[name] = told[teller][name] if teller else usual
    taken = f"{teller}'s" if teller else "ImageNet's"
    fields = "config.model.mean and config.model.std"
    silent = (path for path, found in told.items() if not found)
    return [pretrained.unknown_normalization(path, fields, taken) for path in silent]


def _check_normalization(config, path):
    """InputError for weights of images that were normalized otherwise than here."""
    for name, theirs in pretrained.normalization(path).items():
        ours = tuple(config.model.get(name) or pretrained.IMAGENET[name])
        if ours != theirs:
            raise InputError(
                f"config.model.{name} is {ours}, but {path} was trained with {theirs}: "
                "allowed is that"
            )


def initial(config, model):
    """Variables that training starts from: `config.init.weights`, else fresh ones.

    The file is read before anything is compiled. InputError where it does not fit.
    """
    allowed = tuple(config.init.fresh)
    if not all(isinstance(name, str) for name in allowed):
        raise InputError(
            f"config.init.fresh is {allowed}; allowed are names of parts, such as head"
        )
    if not config.init.weights:
        if allowed:
            raise InputError(
                f"config.init.fresh is {allowed}, so the rest has been trained, but "
                "config.init.weights is empty: name a weights file or the folder of a "
                "run, or set config.init.fresh=() to train everything anew"
            )
        return fresh(model, config.image_size, config.seed)
    like = shapes(model, config.image_size)
    loaded = restore(config.init.weights, like, allowed)
    _check_normalization(config, config.init.weights)
    if not allowed:
        return loaded
    drawn = fresh(model, config.image_size, config.seed)

    def choose(value, new):
        return new if isinstance(value, jax.ShapeDtypeStruct) else value

    return jax.tree.map(choose, loaded, drawn)


def as_given(config, dense):
    """Variables of the `dense` model from `config.init.weights`, none of them fresh.

    What a model whose parts are fresh answers is a guess: InputError.
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
    given = restore(config.init.weights, shapes(dense, config.image_size))
    _check_normalization(config, config.init.weights)
    return given


def teacher(config, model):
    """The frozen variables of the method's teacher, a dense `model`."""
    path = config.teacher.weights
    if not path:
        raise InputError(
            f"config.teacher.weights is empty, but {config.reduction.name!r} learns "
            "from a dense model: name a weights file or the folder of a run"
        )
    try:
        loaded = restore(path, shapes(model, config.image_size))
        _check_normalization(config, path)
        return loaded
    except InputError as error:
        raise InputError(f"config.teacher.weights: {error}") from error


def check_classes(config, workdir, names, resumed=False):
    """InputError where a run that this one learns from has other classes, by name.

    names: of the classes of `config.data`. Compared are the run in `workdir` that goes
    on, the teacher, and what this run starts from if it keeps the head.
    """
    data = f"config.data.name {config.data.name!r}"
    classes.check_classes(
        workdir,
        names,
        data,
        "choose another --workdir, or the data that it was trained on",
    )
    if config.teacher.weights:
        classes.check_classes(
            config.teacher.weights,
            names,
            data,
            classes.SAME_CLASSES,
            field="config.teacher.weights ",
        )
    if config.init.weights and not resumed and "head" not in config.init.fresh:
        classes.check_classes(
            config.init.weights,
            names,
            data,
            f"{classes.SAME_CLASSES}, or a new head by config.init.fresh=('head',)",
            field="config.init.weights ",
        )


def unnamed_classes(config, names):
    """The line on a start whose classes and those of the data, `names`, go unchecked.

    None where they are compared, and where the head is new.
    """
    if not config.init.weights or "head" in config.init.fresh:
        return None
    return classes.unnamed_classes(config.init.weights, names, config.data.name)
