"""The run config: its fields, their checks, and the models made from them.

configs/base.py has the defaults and a comment per field.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.data.config import AugmentConfig, DataConfig
from imagepiece_jax.data.preprocessing import IN_CONFIG, Preprocessing, read_fields
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights import run_files

if TYPE_CHECKING:  # these modules import JAX
    from imagepiece_jax.models.config import ViTConfig
    from imagepiece_jax.models.vit import ViT
    from imagepiece_jax.reduction.reduction import Reduction

REFERENCE_BATCH = 512  # global batch size for `config.lr`


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule, for `optimizer.create_optimizer`."""

    epochs: int
    batch_size: int
    lr: float
    min_lr: float
    warmup_lr: float
    warmup_epochs: float
    lr_offset: int
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    clip_grad_norm: float

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            check_range(f"config.{name}", getattr(self, name), 1, whole=True)
        for name in ("lr", "min_lr", "warmup_lr", "warmup_epochs", "weight_decay"):
            check_range(f"config.{name}", getattr(self, name), 0)
        check_choice("config.lr_offset", self.lr_offset, (0, 1))
        if len(self.betas) != 2:
            raise InputError(f"config.betas is {self.betas}; it must be two numbers")
        for beta in self.betas:
            check_range("config.betas", beta, 0, below=1)
        check_range("config.eps", self.eps, 0)
        check_range("config.clip_grad_norm", self.clip_grad_norm, 0)

    @property
    def peak_lr(self) -> float:
        """Peak learning rate: `lr` is per 512 images (5e-4 at 1024: 1e-3)."""
        return self.lr * self.batch_size / REFERENCE_BATCH


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """The teacher's term in the loss: `losses.distillation`."""

    kind: str
    temperature: float
    weight: float

    def __post_init__(self):
        check_choice("config.distill.kind", self.kind, ("none", "soft", "hard"))
        check_range("config.distill.temperature", self.temperature, 0.01)
        check_range("config.distill.weight", self.weight, 0, 1)

    @property
    def active(self) -> bool:
        """Whether the loss reads a teacher's logits."""
        return self.kind != "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Initial weights; parts named in `fresh` are drawn anew."""

    weights: str | None  # None: required, but not given; "": fresh
    fresh: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The frozen model a run learns from."""

    weights: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All fields of a run, checked, in objects by subject.

    Some fields stand elsewhere than in the config file. `optim` has config.lr and the
    other fields of AdamW and its schedule. `model` also has config.image_size,
    num_classes and config.data's evaluation crop. config.model's dtype, attention and
    drop_path_rate are fields of the run itself.
    """

    seed: int
    image_size: int
    num_classes: int
    eval_batch_size: int
    grad_accum_steps: int
    eval_every_epochs: int
    checkpoint_every_steps: int
    keep_every_steps: int
    log_every_steps: int
    progress: bool
    profile: bool
    max_skipped_steps: int
    remat: bool
    label_smoothing: float
    mixup: float
    cutmix: float
    mixup_prob: float
    mixup_switch_prob: float
    ema_decay: float
    model: "ViTConfig"
    dtype: str
    attention: str
    drop_path_rate: float
    reduction: "Reduction"
    data: DataConfig
    augment: AugmentConfig
    optim: OptimConfig
    teacher: TeacherConfig
    distill: DistillConfig
    init: InitConfig
    # the config as read
    written: Mapping[str, Any] = dataclasses.field(compare=False, repr=False)

    def __post_init__(self):
        # A JAX key drops higher bits.
        check_range("config.seed", self.seed, 0, 2**32 - 1, whole=True)
        for name in (
            "image_size",
            "eval_batch_size",
            "grad_accum_steps",
            "eval_every_epochs",
            "checkpoint_every_steps",
            "log_every_steps",
        ):
            check_range(f"config.{name}", getattr(self, name), 1, whole=True)
        for name in ("num_classes", "keep_every_steps", "max_skipped_steps"):
            check_range(f"config.{name}", getattr(self, name), 0, whole=True)
        for name in ("mixup", "cutmix"):
            check_range(f"config.{name}", getattr(self, name), 0)
        for name in (
            "label_smoothing",
            "mixup_prob",
            "mixup_switch_prob",
            "ema_decay",
        ):
            check_range(f"config.{name}", getattr(self, name), 0, 1)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a ConfigDict or dicts; raise InputError for the first invalid value."""
        if hasattr(config, "to_dict"):  # a ConfigDict
            config = config.to_dict()
        try:
            return cls._from_dict(config)
        except KeyError as error:
            raise InputError(f"config has no {error.args[0]}") from error
        except TypeError as error:  # a missing or unknown field
            raise InputError(f"config: {error}") from error

    @classmethod
    def _from_dict(cls, config):
        from imagepiece_jax.models.create import config_of_run
        from imagepiece_jax.reduction.reduction import Reduction

        # Only the config.json of a run has a format.
        fields = {name: value for name, value in config.items() if name != "format"}
        optim = {}
        for field in dataclasses.fields(OptimConfig):
            optim[field.name] = fields.pop(field.name)
        for name in ("dtype", "attention", "drop_path_rate"):
            fields[name] = config["model"][name]
        fields |= {"optim": OptimConfig(**optim), "written": config}
        for name, config_class in (
            ("data", DataConfig),
            ("augment", AugmentConfig),
            ("teacher", TeacherConfig),
            ("distill", DistillConfig),
            ("init", InitConfig),
        ):
            fields[name] = config_class(**fields[name])
        with _in_config():
            fields["model"] = config_of_run(config)
            fields["reduction"] = Reduction.read(config["reduction"])
        return cls(**fields)

    def create_model(self, axis_name: str | None = None) -> "ViT":
        """Create the evaluation model; `axis_name`: device axis of its batch norm."""
        return self._model(self.reduction, axis_name)

    def create_dense(self) -> "ViT":
        """Create the model without reduction."""
        return self._model(None)

    def create_train_model(self, epoch: int, axis_name: str | None = None) -> "ViT":
        """Create the training model of an epoch."""
        # EViT's keep rate depends on the epoch.
        reduction = self.reduction
        if rate_at := reduction.method.rate_at:
            method = dataclasses.replace(reduction.method, keep_rate=rate_at(epoch))
            reduction = dataclasses.replace(reduction, method=method)
        # Methods that train with masks remove no tokens in training (`Method.plan`).
        model = self._model(reduction, axis_name, masked=True)
        return model.with_execution(remat=self.remat)

    def with_counts(self) -> "RunConfig":
        """Replace the cost `macs`, if given, by token counts, and log them."""
        from imagepiece_jax.models import reduction_plan  # imports JAX

        if self.reduction.method.macs is None:
            return self
        with _in_config():
            reduction = reduction_plan.at_cost(self.reduction, self.create_dense())
        run = dataclasses.replace(self, reduction=reduction)
        reduction_plan.print_reduction(self.reduction, run.create_model())
        return run

    def with_images_of(self, config: "ViTConfig") -> "RunConfig":
        """Fill empty normalization and crop fields from the model `config`."""
        model = self.model
        data = self.data
        images = config.preprocessing
        if self.written["model"]["mean"] is None:
            mean_and_std = {"mean": config.mean, "std": config.std}
            model = dataclasses.replace(model, **mean_and_std)
        if data.eval_crop is None and data.resize != "none":
            # The weights give the whole crop, so no part of it may be given alone.
            for field in ("crop_mode", "interpolation", "rule"):
                name = IN_CONFIG[field]
                value = getattr(data, name)
                if value != getattr(Preprocessing, field):
                    raise InputError(
                        f"config.data.{name} is {value!r}, but config.data.eval_crop "
                        "is empty, so the weights decide the crop; give eval_crop, too"
                    )
            data = dataclasses.replace(
                data,
                eval_crop=images.crop,
                eval_crop_mode=images.crop_mode,
                eval_interpolation=images.interpolation,
                eval_rule=images.rule,
            )
            model = model.with_preprocessing(**read_fields(vars(data)))
        return dataclasses.replace(self, model=model, data=data)

    def to_dict(self) -> dict[str, Any]:
        """The config as written, with mean, std, crop and token counts filled in."""
        model = self.written["model"] | {"mean": self.model.mean, "std": self.model.std}
        data = {}
        for name in self.written["data"]:
            data[name] = getattr(self.data, name)
        return {
            "format": run_files.FORMAT,
            **self.written,
            "model": model,
            "data": data,
            "reduction": str(self.reduction),
        }

    def _model(self, reduction, axis_name=None, masked=False):
        from imagepiece_jax.models.create import build_model, execution_of  # import JAX

        with _in_config():
            execution = execution_of(self.model, self.dtype, self.attention)
            execution = dataclasses.replace(
                execution, axis_name=axis_name, drop_path_rate=self.drop_path_rate
            )
            return build_model(self.model, reduction, execution, masked)

    def saves(self, step: int) -> bool:
        """Whether `step` is saved even if no evaluation follows."""
        for every in (self.checkpoint_every_steps, self.keep_every_steps):
            if every and step % every == 0:
                return True
        return False


@contextlib.contextmanager
def _in_config():
    """Prefix InputErrors about a config's model or reduction."""
    try:
        yield
    except InputError as error:
        raise InputError(f"config: {error}") from error
