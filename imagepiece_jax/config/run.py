"""The config of a run: its fields, their checks, and the models made of them.

Commands find mistakes before they import JAX, which only the fields of the model and of
the reduction need. Defaults and comments stand in configs/base.py.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from imagepiece_jax.common.fields import (
    REQUIRED,
    CheckedFields,
    checked,
    choice,
    count,
    number,
    rate,
    several,
    switch,
    text,
    weight,
)
from imagepiece_jax.common.image_size import patch_grid
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError, inside, renamed
from imagepiece_jax.input.config import AugmentConfig, DataConfig

if TYPE_CHECKING:  # they import JAX
    from imagepiece_jax.models.spec import ModelSpec
    from imagepiece_jax.models.vit import ViT
    from imagepiece_jax.reduction.reduction import Reduction

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
class DistillConfig(CheckedFields):
    """The part of a teacher's answers in the loss: `losses.distillation`."""

    group: ClassVar[str] = "distill"

    kind: str = choice(allowed=("none", "soft", "hard"))
    temperature: float = number(least=0.01)
    weight: float = rate()

    @property
    def active(self) -> bool:
        """Whether anything is learned from a teacher's answers."""
        return self.kind != "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig(CheckedFields):
    """The weights that a run starts from; those named in `fresh` are drawn anew."""

    group: ClassVar[str] = "init"

    weights: str = text()
    fresh: tuple[str, ...] = several(REQUIRED, text(), "names of parts, such as head")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig(CheckedFields):
    """The frozen model that a run learns from."""

    group: ClassVar[str] = "teacher"

    weights: str = text()


def _as_text(reduction):
    """A reduction as a config has it, as the text of its name and fields."""
    if not isinstance(reduction, Mapping):
        return reduction
    fields = {name: value for name, value in reduction.items() if value is not None}
    share = fields.pop("macs") if fields.get("name") == "auto" else None
    words = [str(fields.pop("name") if share is None else share)]
    fields.pop("name", None)
    words += [f"{name}={value}" for name, value in fields.items()]
    return ":".join(words)


def _as_dict(value):
    """A group of a config as a dict; ValueError for anything else."""
    if not hasattr(value, "keys"):
        raise ValueError(value)
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return dict(value)


def _object(*kinds):
    """A field for an object, which `_read_model` makes where it is a dict of fields."""

    def convert(value):
        if dataclasses.is_dataclass(value) or isinstance(value, kinds):
            return value
        return _as_dict(value)

    return checked(REQUIRED, convert, "the fields of configs/base.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(CheckedFields):
    """All fields of a run, checked, in objects by their subject.

    Some are not where the config has them. config.lr, and the other fields of AdamW and
    its schedule, are fields of `optim`. `model` has config.image_size and
    config.num_classes, too; `reduction` has its prop_attn.

    model, reduction: or dicts of their fields, of which objects are made once all other
        fields are found to be right: that imports JAX
    """

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
    model: "ModelSpec" = _object()
    reduction: "Reduction" = _object(str)
    data: DataConfig
    augment: AugmentConfig
    optim: OptimConfig
    teacher: TeacherConfig
    distill: DistillConfig
    init: InitConfig
    # the config that these were read from
    written: Mapping[str, Any] = dataclasses.field(compare=False, repr=False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The RunConfig of a config, which is a ConfigDict or dicts.

        Raises InputError for the first that is missing or not allowed.
        """
        return super().from_config({**config, "written": _as_dict(config)})

    def __post_init__(self):
        super().__post_init__()
        self._read_model()

    def _read_model(self):
        """Make a ModelSpec and a Reduction of dicts."""
        from imagepiece_jax.models.spec import ModelSpec
        from imagepiece_jax.reduction.reduction import Reduction

        sizes = {"image_size": self.image_size, "num_classes": self.num_classes}
        model = self.model
        with _in_config():
            if isinstance(model, dict):
                model = ModelSpec.of_run({"model": model, **sizes})
            reduction = Reduction.read(_as_text(self.reduction), model.prop_attn)
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "reduction", reduction)

    def create_model(self, axis_name: str | None = None) -> "ViT":
        """The model as it is evaluated, with the plan of the reduction.

        axis_name: device axis over which batch norm is synchronized
        """
        return self._model(self.reduction, axis_name=axis_name)

    def create_dense(self, **changes: Any) -> "ViT":
        """The model without reduction; changes: fields of its ModelSpec."""
        return self._model(None, **changes)

    def create_train_model(self, epoch: int, axis_name: str | None = None) -> "ViT":
        """The model as `epoch` trains it.

        Methods that train with masks remove no tokens there (`Method.plan`), and EViT
        has the keep rate of the epoch.
        """
        reduction = self.reduction
        if rate_at := reduction.method.rate_at:
            method = dataclasses.replace(reduction.method, keep_rate=rate_at(epoch))
            reduction = dataclasses.replace(reduction, method=method)
        model = self._model(reduction, axis_name=axis_name, masked=True)
        return model.clone(remat=self.remat)

    def with_counts(self) -> "RunConfig":
        """The RunConfig with the counts of tokens that its cost `macs` gives.

        A line on stderr says them.
        """
        from imagepiece_jax.models import reduction_plan  # imports JAX

        if self.reduction.method.macs is None:
            return self
        dense = self.create_dense()
        grid = patch_grid(self.image_size, dense.patch_size, cut=True)
        with inside("config"), renamed({"reduction": "reduction.macs"}):
            name = self.model.name
            reduction = reduction_plan.at_cost(self.reduction, dense, grid, name)
        found = dataclasses.replace(self, reduction=reduction)
        reduction_plan.print_reduction(self.reduction, found.create_model(), grid)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The config for the run's folder: as written, and complete where it matters.

        mean and std are in it, even where they were empty.
        """
        images = {"mean": self.model.mean, "std": self.model.std}
        model = self.written["model"] | images
        return {**self.written, "model": model, "reduction": str(self.reduction)}

    def _model(self, reduction, **changes):
        with _in_config():
            return dataclasses.replace(self.model, **changes).create(reduction)

    def preprocessing(self) -> Preprocessing:
        """Evaluation's resize and crop."""
        return self.data.preprocessing(self.image_size)

    def saves(self, step: int) -> bool:
        """Whether `step` is saved even if no evaluation follows it."""
        for every in (self.checkpoint_every_steps, self.keep_every_steps):
            if every and step % every == 0:
                return True
        return False


@contextlib.contextmanager
def _in_config():
    """A block whose InputErrors name a model's field by its path in a config."""
    from imagepiece_jax.models.spec import ModelSpec  # imports JAX

    try:
        yield
    except InputError as error:
        first, _, _ = error.field.partition(".")
        path = error.field
        if first in (*ModelSpec.names(), "model", "reduction"):
            path = config_path(error.field)
        raise error.renamed({error.field: path}) from error


def config_path(field: str) -> str:
    """The path of a ModelSpec's field, or of a reduction's, in a run's config.

    "reduction.r" is "config.reduction.r", "num_heads" is "config.model.num_heads".
    """
    from imagepiece_jax.models.architecture import PARTS  # imports JAX

    first, _, _ = field.partition(".")
    if first in ("image_size", "num_classes", "model", "reduction"):
        return f"config.{field}"
    if first in PARTS:
        return f"config.model.arch.{field}"
    return f"config.model.{field}"
