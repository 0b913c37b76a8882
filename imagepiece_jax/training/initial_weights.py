"""The weights that a run starts and learns from, checked against its config."""

import dataclasses
import functools
from typing import Any

import numpy as np

from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data.class_names import check_classes
from imagepiece_jax.data.preprocessing import config_fields, left_open
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry, resize_positions, timm_tensors
from imagepiece_jax.models.architecture import PARTS
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.spec import ModelSpec
from imagepiece_jax.models.variables import fresh_variables, variable_shapes
from imagepiece_jax.reduction.reduction import DENSE
from imagepiece_jax.training.cluster import run_dir
from imagepiece_jax.training.logging import say
from imagepiece_jax.weights import location
from imagepiece_jax.weights.infer import (
    IN_NO_TENSOR,
    partial_spec,
    with_crop,
)
from imagepiece_jax.weights.load import (
    SavedWeights,
    crop_note,
    load_as,
    unknown_normalization,
)
from imagepiece_jax.weights.runs import IMAGENET


class NamedWeights(SavedWeights):
    """The weights that a field of a run's config names."""

    @property
    def normalization(self) -> dict[str, tuple[float, ...]]:
        """{"mean", "std"} of the images; {} where neither files nor a name say them."""
        spec = self.source.spec
        if not self.source.is_folder:
            spec = partial_spec(self.source, self.contents)
        values = registry.fields_of(spec.name) | spec.fields
        return {field: values[field] for field in ("mean", "std") if field in values}

    def load(self, **options) -> Pretrained:
        """The dense model, with options of `load_as`."""
        return load_as(self, reduction=DENSE, **options)


def _named(path, field):
    """The weights at a path, which a field of a config names; None without any."""
    if not path:
        return None
    try:
        return NamedWeights(path)
    except InputError as error:
        raise InputError(f"{field}: {error}") from error


class InitialWeights:
    """The weights at `config.init.weights` and `config.teacher.weights`, read once.

    Nothing is read before it is needed: a run that is resumed needs neither.
    """

    def __init__(self, run: RunConfig):
        self._run = run

    @functools.cached_property
    def start(self) -> NamedWeights | None:
        """The weights at `config.init.weights`; None where it is empty."""
        return _named(self._run.init.weights, "config.init.weights")

    @functools.cached_property
    def teacher(self) -> NamedWeights | None:
        """The weights at `config.teacher.weights`; None where it is empty."""
        return _named(self._run.teacher.weights, "config.teacher.weights")

    def forget(self):
        """Free the tensors; who needs them again reads the files again."""
        for name in ("start", "teacher"):
            vars(self).pop(name, None)

    def _earlier(self, workdir):
        """Weights of the run in `workdir` that is resumed; None for a new one."""
        if run_dir.took_steps(workdir) and location.is_run(workdir):
            return NamedWeights(workdir)
        return None

    def normalization(self, workdir) -> dict[str, Any]:
        """{"mean", "std"} of a run's images; {} where its config says them.

        A run in `workdir` has its own. A new one takes those of the weights that it
        starts or learns from, else those of the model's name, else ImageNet's. A
        teacher that may have others counts only where the run starts from no weights.
        A note is printed where weights do not say them.

        Raises InputError where weights that a new run needs are not there.
        """
        model = self._run.model
        sources = self._normalization_sources(workdir)
        if model.mean is not None or model.std is not None:
            return {}  # only one of them is refused with the rest of the model
        name = model.name
        taken = "ImageNet's"
        values = IMAGENET
        unknown = []
        named = registry.fields_of(name)
        if name not in registry.MODELS and "mean" in named:
            taken = f"{name}'s"
            values = named
        for path, weights in reversed(sources):
            if weights.normalization:
                taken = f"{path}'s"
                values = weights.normalization
            else:
                unknown.insert(0, path)
        for path in unknown:
            say(f"note: {unknown_normalization(path, taken)}")
        return {field: values[field] for field in IMAGENET}

    def _normalization_sources(self, workdir):
        """Weights that a run may take its normalization from: (path, NamedWeights).

        The first has precedence.
        """
        if earlier := self._earlier(workdir):
            return [(workdir, earlier)]
        run = self._run
        start = self.start
        teacher = self.teacher
        sources = []
        if start:
            sources.append((run.init.weights, start))
        # A teacher of distillation may be normalized in another way than the model; one
        # that a method needs gets the same images.
        same_images = run.reduction.method.needs_teacher or not run.distill.active
        if teacher and (same_images or not start):
            sources.append((run.teacher.weights, teacher))
        return sources

    def crop(self, workdir) -> dict[str, Any]:
        """How a run's images are cropped in evaluation, by fields of its config.data.

        Those that the config leaves open are as for the weights that the run starts
        from, so that their accuracy is that of `evaluate`. A run in `workdir` has its
        own. {} where the config says it, and from scratch, which is DeiT's recipe. A
        note is printed where weights say none, or several.

        Raises InputError where weights that a new run needs are not there.
        """
        weights = self._earlier(workdir) or self.start
        if weights is None:
            return {}
        run = self._run
        source = with_crop(weights.source, ModelSpec(name=run.model.name))
        taken = left_open(vars(run.data), config_fields(source.crop))
        data = dataclasses.replace(run.data, **taken)
        images = data.preprocessing(run.image_size)
        note = crop_note(source, images, "config.data.eval_crop")
        if note and run.data.eval_crop is None:
            say(f"note: {note}")
        return taken

    def check_classes(self, workdir, names, resumed: bool = False):
        """Compare the classes of a run's weights with those of the data.

        The weights are those of the resumed run in `workdir`, of the teacher, and the
        initial ones if their head stays. A note says where the classes of initial
        weights cannot be compared.

        names: names of the classes of `config.data`
        Raises InputError where a class is another, by name.
        """
        run = self._run
        data = f"config.data.name {run.data.name!r}"
        if earlier := self._earlier(workdir):
            before = earlier.source.class_names
            try:
                check_classes(before, str(workdir), names, data)
            except InputError as error:
                raise InputError(f"{error}; {run_dir.OTHER}") from error
        if run.teacher.weights and location.exists(run.teacher.weights):
            source = f"config.teacher.weights {run.teacher.weights}"
            taught = self.teacher.source.class_names
            check_classes(taught, source, names, data)
        if not run.init.weights or resumed or "head" in run.init.fresh:
            return
        before = self.start.source
        source = f"config.init.weights {run.init.weights}"
        try:
            note = check_classes(before.class_names, source, names, data)
        except InputError as error:
            new_head = "or draw a new head by config.init.fresh=('head',)"
            raise InputError(f"{error}; {new_head}") from error
        if note and before.run is not None:
            say(f"note: {note}")

    def variables(self, model):
        """Variables that training starts from: `config.init.weights`, else fresh ones.

        The file is read before anything is compiled.

        Raises InputError where it does not fit.
        """
        run = self._run
        init = run.init
        fresh = init.fresh
        if fresh and not init.weights:
            raise InputError(
                f"config.init.fresh is {fresh}, but config.init.weights, for all other "
                "parts, is empty; config.init.fresh=() trains all of it from scratch"
            )
        if self.start is None:
            return fresh_variables(model, run.image_size, run.seed)
        shapes = variable_shapes(model, run.image_size)
        timm_tensors.check_parts(fresh, shapes, "config.init.fresh")
        return self._started(model, fresh)

    def teacher_variables(self, model):
        """The frozen variables of the method's teacher, a dense `model`.

        Raises InputError where config.teacher.weights is empty or does not fit.
        """
        try:
            return self._fitted(self.teacher, model)
        except InputError as error:
            raise InputError(f"config.teacher.weights: {error}") from error

    def _started(self, model, fresh=()):
        """`_fitted` of `start`; the InputError says what to type for new parts."""
        try:
            return self._fitted(self.start, model, fresh)
        except timm_tensors.Misfit as error:
            if not error.fresh:
                raise
            parts = tuple(dict.fromkeys((*self._run.init.fresh, *error.fresh)))
            flags = f'"--config.init.fresh={parts}"'
            raise InputError(f"{error}; to train it anew: {flags}") from error

    def _fitted(self, weights, model, fresh=()):
        """Variables of `model`; InputError where the weights do not fit.

        They must also agree in what no tensor shows, such as the kind of GELU and the
        normalization of the images.
        """
        hidden = ModelSpec.from_fields(_hidden(model))
        vit = weights.load(otherwise=hidden)
        size = self._run.image_size
        params = vit.fitted(vit.variables["params"], model, size)
        tensors = (
            timm_tensors.to_timm({**vit.variables, "params": params}) | vit.selectors
        )
        if "pos_embed" not in fresh:  # by the code that the positions were trained for
            how = vit.model.arch.resize
            tensors = resize_positions.fit(tensors, model, size, vit.image_size, how)
        variables, _ = timm_tensors.model_variables(
            model, size, tensors, vit.place, fresh=fresh, seed=self._run.seed
        )
        theirs = _hidden(vit.model)
        ours = _hidden(model)
        del ours["resize"]  # these positions are resized already
        if "head" in fresh:
            del ours["pool"], ours["pool_include_prefix"]  # a new head's own matter
        if not model.arch.has_gelu:
            del ours["gelu"]
        for field, value in ours.items():
            if not _equal(theirs[field], value):
                group = "model.arch" if field in PARTS else "model"
                raise InputError(
                    f"config.{group}.{field} is {value!r}, but {vit.place} was trained "
                    f"with {theirs[field]!r}"
                )
        return variables


def _hidden(model):
    """The fields of a model that no tensor shows."""
    fields = {part: getattr(model.arch, part) for part in IN_NO_TENSOR}
    if fields["rotary"] is None:
        fields["rotary"] = False
    fields |= {"num_heads": model.num_heads, "mean": model.mean, "std": model.std}
    return fields


def _equal(one, other):
    """Whether values are the same, numbers to what float32 can hold of them."""
    if isinstance(one, tuple | float):
        return np.allclose(one, other, rtol=1e-6, atol=0)
    return one == other
