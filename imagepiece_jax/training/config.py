"""The config of a run: its fields, their checks, and the objects made from them.

Reading it needs no JAX: commands find mistakes before they import it. The fields of the
model and of the reduction are checked where they are made. Defaults and comments stand
in configs/base.py.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from imagepiece_jax.common.fields import (
    REQUIRED,
    CheckedFields,
    checked,
    choice,
    count,
    number,
    optional,
    rate,
    several,
    switch,
    text,
    weight,
)
from imagepiece_jax.common.image_size import patch_grid
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.common.progress import working
from imagepiece_jax.data import class_names, loader
from imagepiece_jax.data.config import AugmentConfig, DataConfig
from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError, check_names, within
from imagepiece_jax.models.problem import check_single_label

if TYPE_CHECKING:
    from imagepiece_jax.models.config import ModelConfig
    from imagepiece_jax.models.vit import ViT
    from imagepiece_jax.pretrained.weights import Weights
    from imagepiece_jax.reduction.methods.method import Method

# config.best_by -> the figure of an evaluation that chooses the best checkpoint
BEST_BY = {"weights": "acc1", "averages": "ema_acc1"}
# Which parameters are trained. "norms": scales and biases of norms; "biases": these,
# all other biases and the factors of layer scale.
TRAINED = ("all", "biases", "norms")
REFERENCE_BATCH = 512  # `config.lr` is the rate for a global batch of so many images


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(CheckedFields):
    """The fields of AdamW and its schedule; `optimizer.create` takes them."""

    group: ClassVar[str] = ""

    epochs: int = count(least=1)
    batch_size: int = count(least=1)
    lr: float = weight()
    min_lr: float = weight()
    warmup_lr: float = weight()
    warmup_epochs: float = weight()
    lr_offset: int = choice(allowed=(0, 1))
    weight_decay: float = weight()
    betas: tuple[float, float] = several(
        REQUIRED, number(least=0, below=1), "two numbers of at least 0 and below 1", 2
    )
    eps: float = weight()
    clip_grad_norm: float = weight()

    @property
    def peak_lr(self) -> float:
        """The peak rate: `lr` is per 512 images (5e-4 at 1024: 1e-3)."""
        return self.lr * self.batch_size / REFERENCE_BATCH


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartConfig(CheckedFields):
    """The part of the parameters that is trained: `optimizer.trained_part`."""

    group: ClassVar[str] = "optim"

    train: str = choice("all", TRAINED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(CheckedFields):
    """The part of a teacher's answers in the loss: `train_step.distillation`."""

    group: ClassVar[str] = "distill"

    kind: str = choice(allowed=("none", "soft", "hard"))
    temperature: float = number(least=0.01)
    class_tokens: float = weight(0.0)
    weight: float = rate()

    def __post_init__(self):
        super().__post_init__()
        if self.class_tokens and not self.active:
            problem = f"is {self.class_tokens}, but config.distill.kind is 'none'"
            self.refuse("class_tokens", "0.0 without a teacher", problem)

    @property
    def active(self) -> bool:
        """Whether anything is learned from a teacher's answers."""
        return self.kind != "none"

    @property
    def unlabeled(self) -> bool:
        """Whether the labels have no part in the loss: then nothing reads them."""
        return self.active and self.weight == 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig(CheckedFields):
    """The weights that a run starts from; those named in `fresh` are drawn anew."""

    group: ClassVar[str] = "init"

    weights: str = text()
    fresh: tuple[str, ...] = several(REQUIRED, text(), "names of parts, such as head")
    evaluate: bool = switch()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig(CheckedFields):
    """The frozen model that a run learns from, and facts that its weights lack.

    All but `weights` are fields of the ModelConfig that checks them.
    """

    group: ClassVar[str] = "teacher"

    weights: str = text()
    name: str | None = None
    num_heads: int | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the teacher's model that are not None."""
        return {k: v for k, v in vars(self).items() if k != "weights" and v is not None}


def _as_dict(value):
    """A group of a config; ValueError for anything else."""
    if not hasattr(value, "keys"):
        raise ValueError(value)
    return value.to_dict() if hasattr(value, "to_dict") else dict(value)


def _group():
    """The fields of a group as a dict, which their own class checks."""
    return checked(REQUIRED, _as_dict, "the fields of configs/base.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSet(CheckedFields):
    """Images that a run is evaluated on."""

    data: str = text("")  # as config.data.name; "": the test images of config.data
    every_epochs: int | None = optional(count(least=1))  # None: eval_every_epochs
    # The model's label for each class name of the data; None: by the model's names.
    classes: dict[str, int] | None = checked(
        None, lambda value: value and _as_dict(value), "labels by class name"
    )

    @classmethod
    def by_name(cls, value) -> dict[str, "EvalSet"]:
        """The sets of config.eval.sets."""
        names, sets = cls.__dataclass_fields__, {}
        for name, fields in _as_dict(value).items():
            if not re.fullmatch(r"[\w-]+", name):
                words = "names of letters, digits, - and _"
                raise InputError(value=name, allowed=words)
            with within(name):
                check_names(_as_dict(fields), names)
                sets[name] = cls(**fields)
        return sets or {"": cls()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig(CheckedFields):
    """The evaluations of a run by name; the only one without a name is ""."""

    group: ClassVar[str] = "eval"

    sets: dict[str, EvalSet] = checked(REQUIRED, EvalSet.by_name, "sets by name")
    best_set: str = text()  # whose accuracy chooses the best checkpoint; "": the only

    def __post_init__(self):
        super().__post_init__()
        if not self.best_set and len(self.sets) == 1:
            object.__setattr__(self, "best_set", next(iter(self.sets)))
        if self.best_set not in self.sets:
            names = ", ".join(self.sets) or "'', as config.eval.sets is empty"
            self.refuse("best_set", names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFields(CheckedFields):
    """All fields of a run, those of its model and reduction as they are written."""

    group: ClassVar[str] = ""

    seed: int = count(most=2**32 - 1)  # a JAX key cuts more bits off
    image_size: int = count(least=1)
    num_classes: int = count()
    eval_batch_size: int = count(least=1)
    grad_accum_steps: int = count(least=1)
    eval_every_epochs: int = count(least=1)
    checkpoint_every_steps: int = count(least=1)
    keep_every_steps: int = count()
    log_every_steps: int = count(least=1)
    pictures: int = count()
    progress: bool = switch()
    profile: bool = switch()
    max_skipped_steps: int = count()
    remat: bool = switch()
    label_smoothing: float = rate()
    mixup: float = weight()
    cutmix: float = weight()
    mixup_prob: float = rate()
    mixup_switch_prob: float = rate()
    ema_decay: float = rate()
    best_by: str = choice(allowed=tuple(BEST_BY))
    model: dict[str, Any] = _group()
    reduction: dict[str, Any] = _group()
    eval: EvalConfig
    data: DataConfig
    augment: AugmentConfig
    optim: OptimConfig
    part: PartConfig
    teacher: TeacherConfig
    distill: DistillConfig
    init: InitConfig

    def __post_init__(self):
        super().__post_init__()
        data = self.data
        if 0 < data.canvas < self.image_size:
            data.refuse("canvas", f"0 and image_size ({self.image_size}) or more")
        if data.canvas and data.crop != "random_resized":
            problem = f"is {data.crop!r} with canvas={data.canvas}"
            data.refuse("crop", "'random_resized', as the device crops", problem)
        if self.best_by == "averages" and not self.ema_decay:
            allowed = "'weights', or a decay above 0, such as 0.99996"
            self.refuse("best_by", allowed, "is 'averages', but ema_decay is 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(RunFields):
    """All fields of a run. Reading them imports JAX, which `RunFields` does not."""

    model: "ModelConfig"
    reduction: "Method"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "RunConfig":
        """The fields, read from a full config. Raises InputError as `RunFields`."""
        from imagepiece_jax.models.config import ModelConfig, in_config
        from imagepiece_jax.reduction.settings import read_reduction

        fields = vars(RunFields.from_config(config))
        sizes = {name: fields[name] for name in ("image_size", "num_classes")}
        with in_config():
            model = ModelConfig.of({**fields["model"], **sizes})
            method, prop_attn = read_reduction(fields["reduction"], model.prop_attn)
        with within("config.reduction"):
            model = dataclasses.replace(model, prop_attn=prop_attn)
        return cls(**fields | {"model": model, "reduction": method})

    def create_model(self, axis_name: str | None = None) -> "ViT":
        """The model as it is evaluated; `axis_name` synchronizes batch norm."""
        return self._model(self.reduction, axis_name=axis_name)

    def create_dense(self, **changes: Any) -> "ViT":
        """The same without reduction, with `changes` of its fields."""
        return self._model(None, **changes)

    def create_train_model(self, epoch: int, axis_name: str | None = None) -> "ViT":
        """The model as `epoch` trains it: masked, or with the rate of that epoch."""
        reduction = self.reduction
        if rate_at := reduction.rate_at:
            reduction = dataclasses.replace(reduction, keep_rate=rate_at(epoch))
        model = self._model(reduction, axis_name=axis_name, masked=True)
        return model.clone(remat=self.remat)

    def resolved(self) -> "RunConfig":
        """The same, with tokens in place of the cost of its reduction."""
        from imagepiece_jax.models.at_cost import at_cost
        from imagepiece_jax.models.config import in_config  # imports JAX

        if self.reduction.macs is None:
            return self
        dense, name = self.create_dense(), self.model.name
        grid = patch_grid(self.image_size, dense.patch_size, cut=True)
        with in_config():
            reduction = at_cost(self.reduction, dense, grid, name)
        return dataclasses.replace(self, reduction=reduction)

    def to_dict(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`config`, which this was read from, with the model's mean and std, and all
        fields of the reduction, with the text that asked for it."""
        from imagepiece_jax.reduction.methods import name_of
        from imagepiece_jax.reduction.settings import LABEL, asked

        images = {name: getattr(self.model, name) for name in ("mean", "std")}
        fields = {"name": name_of(self.reduction), **self.reduction.named_fields()}
        written = config["reduction"]
        fields |= {k: written[k] for k in ("prop_attn", LABEL) if k in written}
        if written.get("macs") and self.reduction.macs is None:
            fields[LABEL] = asked(written)
        model = config["model"] | images
        return {**config, "model": model, "reduction": fields}

    def _model(self, reduction, **changes):
        from imagepiece_jax.models.config import in_config  # imports JAX

        with in_config():
            return dataclasses.replace(self.model, **changes).create(reduction)

    def source(
        self, split: str, labels_by_name: Mapping[str, int] | None = None
    ) -> Source:
        """The images of "train" or "val"; labels that the loss does not read are not.

        labels_by_name: of classes that the run has already, as `open_source` takes them
        Raises InputError where they cannot be opened or do not fit the config.
        """
        return self.data.source(
            split,
            num_classes=self.num_classes,
            labeled=not self.distill.unlabeled,
            labels_by_name=labels_by_name,
        )

    def eval_source(self, name: str, names: class_names.Names | None) -> Source:
        """The images of an evaluation, labeled by the `names` of the model's classes.

        Where the loss reads no labels they may have none, too.

        Raises InputError where they cannot be opened or have other classes.
        """
        own, place = self.eval.sets[name], name and f"config.eval.sets.{name}"
        data = dataclasses.replace(self.data, name=own.data or self.data.name)
        wanted = None
        if own.classes is not None:
            given = own.classes.items()
            wanted = {class_names.normalized(k): label for k, label in given}
        labels = wanted or class_names.labels_by_name(names, self.num_classes)
        with within(place=place):
            options = {"num_classes": self.num_classes, "labels_by_name": labels}
            source = data.source("val", **options, labeled=not self.distill.unlabeled)
        if wanted is not None:
            found = {k: i for i, k in enumerate(source.class_names or ()) if k}
            if found != wanted:
                field = f"{place}.classes"
                raise InputError(field=field, value=own.classes, allowed=f"{found}")
            source.class_names = names
        return source

    def test_images(self, weights: "Weights", limit: int | None = None) -> Source:
        """The images to evaluate weights on; prints notes on both.

        limit: so many images, evenly spaced over the set
        Raises InputError for weights without classes, and for images of other classes.
        """
        path, data, names = str(weights.path), self.data.name, weights.class_names
        if not self.num_classes:
            allowed = "weights with a head (train.py --config.init.weights trains one)"
            hint = "or take its vectors by the command predict with --json"
            raise InputError("has no classes", place=path, allowed=allowed, hint=hint)
        check_single_label(weights.problem_type, path, "accuracy takes")
        every = self.eval_source(self.eval.best_set, names)
        if not every.labeled:
            problem = f"is {data!r}, whose test images have no labels"
            allowed = "test images with labels, which accuracy needs"
            raise InputError(problem, field="config.data.name", allowed=allowed)
        source, theirs = every.spread(limit), every.class_names
        unnamed = class_names.check_classes(weights.names_of_data, path, theirs, data)
        notes = [unnamed if weights.run else None]
        notes += [class_names.mapped_classes(theirs, data, names)]
        if source.part:
            notes += [f"{len(source)} of {len(every)} images are taken, evenly spaced"]
        if data.startswith("csv:") and np.min(getattr(every, "labels", [0])) == 1:
            # Where they count from 1 the accuracy would be 0.
            notes += [f"no label of {data} is 0, the lowest is 1; labels count from 0"]
        notes += [self.preprocessing().note(source.some_sizes(), len(source))]
        for note in filter(None, notes):
            print(f"note: {note}", flush=True)
        return source

    def macs_by_epoch(self) -> list[int]:
        """MACs of an image's forward pass in each epoch: a keep rate may warm up."""
        from imagepiece_jax.models.cost import model_macs  # imports JAX

        rate_at, epochs = self.reduction.rate_at, range(self.optim.epochs)
        rates = [rate_at(epoch) if rate_at else None for epoch in epochs]
        models = {rate: self.create_train_model(rates.index(rate)) for rate in {*rates}}
        macs = {k: model_macs(model, self.image_size) for k, model in models.items()}
        return [macs[rate] for rate in rates]

    def training_flop(self, images: int, teacher_macs: int | None = None) -> float:
        """Operations of all steps of a run over `images` training images, two a MAC.

        A step takes a forward pass of each image, a backward pass of twice its cost and
        the teacher's forward pass. Repeated computations (`remat`) and evaluations do
        not count.

        teacher_macs: of an image; None: a teacher, where there is one, is dense
        """
        from imagepiece_jax.models.cost import TRAINING_MACS, model_macs

        if teacher_macs is None:
            taught = self.reduction.needs_teacher or self.distill.active
            dense = self.create_dense()
            teacher_macs = model_macs(dense, self.image_size) if taught else 0
        length = self.length(images)
        macs = TRAINING_MACS * sum(self.macs_by_epoch()) + length.epochs * teacher_macs
        return 2.0 * length.steps_per_epoch * self.optim.batch_size * macs

    def length(self, images: int) -> "Length":
        """The run over `images` training images; a partial batch is left out."""
        with self.optim.in_config():
            steps = loader.steps_per_epoch(images, self.optim.batch_size)
        usual = self.eval_every_epochs
        intervals = {k: one.every_epochs or usual for k, one in self.eval.sets.items()}
        return Length(steps, self.optim.epochs, intervals)

    def saves(self, step: int) -> bool:
        """Whether `step` is saved even if no evaluation follows it."""
        every = (self.checkpoint_every_steps, self.keep_every_steps)
        return any(steps and step % steps == 0 for steps in every)

    def check_training(self, placement: Placement):
        """Raise InputError for a model without a loss, or batches that do not divide.

        The loss is not scaled, which float16 would need.
        """
        if not self.num_classes:
            self.refuse("num_classes", "1 or more in training")
        if self.model.dtype == "float16":
            problem = "is 'float16', in which small gradients vanish in training"
            found = {"field": "config.model.dtype", "value": "float16"}
            raise InputError(problem, **found, allowed="float32, bfloat16")
        with self.optim.in_config():
            placement.positions(self.optim.batch_size)
        micro = self.optim.batch_size // self.grad_accum_steps
        mixes = (self.mixup > 0 or self.cutmix > 0) and self.mixup_prob > 0
        if mixes and micro % 2:
            allowed = f"even micro-batches, not {micro}: mixup and cutmix pair images"
            self.optim.refuse("batch_size", allowed)

    def rounded_eval_batch(self, placement: Placement, images: int) -> int:
        """eval_batch_size, or `images` if fewer, up to a multiple of all devices."""
        devices = placement.process_count * placement.local_devices
        return -(-min(self.eval_batch_size, images) // devices) * devices

    def eval_batches(
        self, source: Source, placement: Placement, batch_size: int | None = None
    ) -> Iterator:
        """The batches of one pass over `source` in this process."""
        size = batch_size or self.rounded_eval_batch(placement, len(source))
        options = {"batch_size": size, "placement": placement}
        sequence = loader.EvalBatches(source, self.preprocessing(), **options)
        return sequence.batches(self.data.workers, self.data.threads)

    def preprocessing(self):
        """Evaluation's resize and crop."""
        return self.data.preprocessing(self.image_size)


def method_fields(name: str | None = None) -> list[str]:
    """The fields of the method `name`, [] for an unknown one; None: of all methods."""
    from imagepiece_jax.reduction.methods import METHODS  # imports JAX

    fields = {}  # in the order of the first method that has it
    for method in METHODS:
        if name in (None, method):
            fields |= METHODS[method].__dataclass_fields__
    return [*fields]


def allowed_values(field: str) -> str | None:
    """The allowed values of a field of a config, by its path; None: nobody says."""
    group, _, name = field.rpartition(".")
    kinds = [RunFields, *(each.type for each in dataclasses.fields(RunFields))]
    owners = [kind for kind in kinds if getattr(kind, "group", None) == group]
    if group in ("model", "teacher"):
        from imagepiece_jax.models.config import ModelConfig  # imports JAX

        owners.append(ModelConfig)
    for owner in owners:
        known = owner.__dataclass_fields__
        if name in known and known[name].metadata:
            return known[name].metadata["allowed"]
    return None


@dataclasses.dataclass(frozen=True)
class Length:
    """Length of a run in steps, and which of them evaluations follow."""

    steps_per_epoch: int
    epochs: int
    eval_every_epochs: Mapping[str, int]  # by the name of the set

    @property
    def steps(self):
        return self.steps_per_epoch * self.epochs

    def due(self, step: int) -> list[str]:
        """The sets evaluated after `step`: at an epoch of theirs, and the run's end."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        due = self.eval_every_epochs.items()
        if step != self.steps:
            due = [(k, every) for k, every in due if rest == 0 and epoch % every == 0]
        return [name for name, _ in due]


class Data:
    """All images of a run, and this process's share of their batches.

    labels_by_name: as `RunConfig.source` takes them
    train: a Source
    eval_sets: the Source of each evaluation, by name
    names: (field, its value, "training" or the name of the evaluation) of each Source
    length: of a run over them
    training: called with `start_step` and `stop_step`, the batches of these steps
    evaluations: the batches of one pass over each of `eval_sets`
    Raises InputError where images do not fit the config, or the run cannot be trained
        on the devices of `placement`.
    """

    def __init__(
        self,
        run: RunConfig,
        placement: Placement,
        labels_by_name: Mapping[str, int] | None = None,
    ):
        run.check_training(placement)
        train_transform = run.data.train_transform(run.image_size)
        preprocessing = run.preprocessing()
        self.train = run.source("train", labels_by_name)
        names = self.train.class_names
        self.eval_sets = {name: run.eval_source(name, names) for name in run.eval.sets}
        self.names = [("config.data.name", run.data.name, "training")]
        for name, source in self.eval_sets.items():
            data = run.eval.sets[name].data
            field = f"config.eval.sets.{name}.data" if data else "config.data.name"
            self.names.append((field, data or run.data.name, name or "test"))
            theirs = source.class_names, self.names[-1][1]
            class_names.check_classes(names, run.data.name, *theirs)
        largest = max(map(len, self.eval_sets.values()))
        eval_batch_size = run.rounded_eval_batch(placement, largest)
        # A size that does not fit shows here, not in the first step.
        self.train.try_first(train_transform, rng=np.random.default_rng(0))
        for source in self.eval_sets.values():
            source.try_first(preprocessing)
        self.length = run.length(len(self.train))
        self.training = functools.partial(
            loader.TrainBatches,
            self.train,
            train_transform,
            batch_size=run.optim.batch_size,
            seed=run.seed,
            placement=placement,
            repeats=run.data.repeats,
        )
        options = {"batch_size": eval_batch_size, "placement": placement}
        self.evaluations = {
            name: loader.EvalBatches(source, preprocessing, **options)
            for name, source in self.eval_sets.items()
        }

    @property
    def images(self) -> list[int]:
        """Numbers of images: of training, then of each evaluation."""
        return [len(source) for source in (self.train, *self.eval_sets.values())]

    def digest(self) -> list[str]:
        """Digests of the content of all; slow for files over a network."""
        with working("making a digest of the data"):
            return [x.digest for x in (self.train, *self.eval_sets.values())]
