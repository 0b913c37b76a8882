"""A run's config: every option with its default, its check, and what it means.

The groups data and augment are in `imagepiece_jax.data.config`. configs/base.py makes
the ConfigDict of the command line from these classes.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from imagepiece_jax.common.checks import check_options, option, replace_lists
from imagepiece_jax.data.config import AugmentConfig, DataConfig
from imagepiece_jax.data.preprocessing import NAME_IN_CONFIG, Preprocessing
from imagepiece_jax.errors import InputError, titled_errors
from imagepiece_jax.weights import folder_files

if TYPE_CHECKING:  # these modules import JAX
    from imagepiece_jax.models.config import ViTConfig
    from imagepiece_jax.models.vit import ViT
    from imagepiece_jax.reduction.reduction import Reduction


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Config group model: the network, and how it computes.

    An empty field has the value of the named model.
    """

    # deit_ti, deit_s, deit_b, vit_mini, or timm's name of a public model. Empty: the
    # sizes say it all, with DeiT's parts.
    name: str | None = "deit_s"
    stem: str = "patch"  # or "conv", ImagePiece's local coherence bias
    # Parts of an `Architecture` that differ from the named model's.
    arch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Images in [0, 1], by channel. Empty: as the start weights say, else the named
    # model, else ImageNet's (.485, .456, .406) and (.229, .224, .225).
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    drop_path_rate: float = 0.1  # in the last block; it rises linearly from 0
    # Layers compute in "bfloat16" or "float32", in inference also in "float16".
    # Parameters are always float32.
    dtype: str = "bfloat16"
    attention: str = "auto"  # "xla", "cudnn", or "auto": by device and dtype
    patch_size: int | None = None  # pixels a side
    embed_dim: int | None = None  # token width
    depth: int | None = None  # block count
    num_heads: int | None = None  # attention heads per block
    mlp_ratio: float | None = None  # MLP width / token width


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Config group teacher: the frozen model a run learns from."""

    weights: str = ""  # a file, folder, run or hf://OWNER/NAME


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Config group distill: the teacher's term, `losses.distillation_loss`."""

    # "soft" learns the teacher's probabilities, "hard" its first class. A distillation
    # token has its own head for them.
    kind: str = option("none", ("none", "soft", "hard"))
    temperature: float = option(3.0, least=0.01)  # of "soft": divides both logits
    weight: float = option(0.5, least=0, most=1)  # the labels' term has 1 - weight

    def __post_init__(self) -> None:
        check_options(self, "config.distill")

    @property
    def is_active(self) -> bool:
        """Whether the loss reads a teacher's logits."""
        return self.kind != "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Config group init: initial weights."""

    weights: str = ""  # a file, folder or run; None: required, but not given
    fresh: tuple[str, ...] = ()  # parts that are drawn anew, such as ("head",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All options of a run, checked; the defaults are DeiT's recipe on ImageNet-1k.

    Source: Touvron et al., 2021.
    """

    # Every random draw is a function of seed, step and sample; 32 bits make a JAX key.
    seed: int = option(0, least=0, most=2**32 - 1)
    image_size: int = option(224, least=1)  # pixels a side, in whole patches
    num_classes: int = option(1000, least=0)  # labels are 0 .. num_classes - 1
    model: ModelConfig = ModelConfig()
    # A method with its fields, such as "evit:keep_rate=0.5:blocks=(3,6,9)", or a share
    # of the dense model's MACs, "0.5".
    reduction: "Reduction" = "none"  # pyrefly: ignore[bad-assignment]
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()

    epochs: int = option(300, least=1)  # passes over the training images
    batch_size: int = option(1024, least=1)  # images a step, over all devices
    grad_accum_steps: int = option(1, least=1)  # micro-batches a step
    lr: float = option(5e-4, least=0)  # per 512 images
    min_lr: float = option(1e-5, least=0)  # at the end of the cosine, not scaled
    warmup_lr: float = option(1e-6, least=0)  # at the start, not scaled
    warmup_epochs: float = option(5.0, least=0)  # linear, from warmup_lr
    lr_offset: int = option(0, (0, 1))  # 1: by whole epochs, one late, as DeiT's code
    # Not on biases, 1-D parameters, positions and class token.
    weight_decay: float = option(0.05, least=0)
    betas: tuple[float, float] = option((0.9, 0.999), least=0, below=1)  # AdamW's
    eps: float = option(1e-8, least=0)  # added to the root of AdamW's second moment
    clip_grad_norm: float = option(0.0, least=0)  # 0: no clipping
    max_skipped_steps: int = option(10, least=0)  # in a row, before the run stops
    # Compute a block's activations twice to hold fewer: DeiT-S with 256 images works in
    # 2.2 GB instead of 10.1 (H200), by estimate in a quarter more time.
    remat: bool = False
    label_smoothing: float = option(0.1, least=0, most=1)  # share over all classes
    mixup: float = option(0.8, least=0)  # alpha of Beta(alpha, alpha); 0: off
    cutmix: float = option(1.0, least=0)  # likewise
    mixup_prob: float = option(1.0, least=0, most=1)  # of mixing a batch at all
    mixup_switch_prob: float = option(0.5, least=0, most=1)  # cutmix, if both are on
    ema_decay: float = option(0.99996, least=0, most=1)  # of averaged weights; 0: off
    teacher: TeacherConfig = TeacherConfig()
    distill: DistillConfig = DistillConfig()
    init: InitConfig = InitConfig()

    eval_batch_size: int = option(512, least=1)  # images over all devices
    eval_every_epochs: int = option(1, least=1)  # and after the last
    checkpoint_every_steps: int = option(1250, least=1)  # and after an evaluation
    keep_every_steps: int = option(0, least=0)  # these checkpoints stay; 0: none
    log_every_steps: int = option(50, least=1)  # metrics since the last line
    progress: bool = True  # print a line where metrics are logged
    profile: bool = False  # trace some early steps for TensorBoard or Perfetto

    def __post_init__(self) -> None:
        from imagepiece_jax.reduction.reduction import Reduction

        check_options(self, "config")
        if len(self.betas) != 2:
            raise InputError(f"config.betas is {self.betas}; it must be two numbers")
        with titled_errors("config"):
            object.__setattr__(self, "reduction", Reduction.read(self.reduction))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a ConfigDict or dicts; raise InputError for the first invalid value."""
        # A ConfigDict's groups are ConfigDicts, too; `to_dict` converts them all.
        fields = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        fields.pop("format", None)  # only the config.json of a run has a format
        try:
            run_config = _read_options(cls, replace_lists(fields))
            _ = run_config.vit_config  # raises for a model that does not fit
        except KeyError as error:
            raise InputError(f"config has no {error.args[0]}") from error
        except TypeError as error:  # an unknown field
            raise InputError(f"config: {error}") from error
        return run_config

    @functools.cached_property
    def vit_config(self) -> "ViTConfig":
        """The complete model; raises InputError for options that do not fit."""
        from imagepiece_jax.models.create import read_run_config

        fields = {"model": vars(self.model), "data": vars(self.data)}
        with titled_errors("config"):
            return read_run_config(vars(self) | fields)

    @property
    def peak_lr(self) -> float:
        """Peak learning rate: `lr` is per 512 images (5e-4 at 1024: 1e-3)."""
        return self.lr * self.batch_size / 512

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss compares the model with a teacher."""
        return self.reduction.method.needs_teacher or self.distill.is_active

    def create_model(self) -> "ViT":
        """Create the evaluation model."""
        return self._create_model(self.reduction)

    def create_dense_model(self) -> "ViT":
        """Create the model without reduction."""
        return self._create_model(None)

    def create_train_model(self, epoch: int) -> "ViT":
        """Create the training model of an epoch."""
        # EViT's keep rate depends on the epoch.
        reduction = self.reduction
        if rate_at := reduction.method.rate_at:
            method: Any = reduction.method
            method = dataclasses.replace(method, keep_rate=rate_at(epoch))
            reduction = dataclasses.replace(reduction, method=method)
        # Methods that train with masks remove no tokens in training (`Method.plan`).
        model = self._create_model(reduction, masked=True)
        return model.with_execution(remat=self.remat)

    def with_counts(self) -> "RunConfig":
        """Replace the cost `macs`, if given, by token counts, and log them."""
        from imagepiece_jax.models import create, fit_to_cost  # import JAX

        if self.reduction.method.macs is None:
            return self
        with titled_errors("config"):
            dense_model = self.create_dense_model()
            reduction = fit_to_cost.fit_to_cost(self.reduction, dense_model)
        run_config = dataclasses.replace(self, reduction=reduction)
        create.log_reduction(self.reduction, run_config.create_model())
        return run_config

    def fill_preprocessing(self, trained_config: "ViTConfig") -> "RunConfig":
        """Fill empty normalization and crop fields from trained weights' config."""
        model_group = self.model
        data_group = self.data
        if model_group.mean is None:
            model_group = dataclasses.replace(
                model_group, mean=trained_config.mean, std=trained_config.std
            )
        if data_group.eval_crop is None and data_group.resize != "none":
            crop_values = {}
            for field, option_name in NAME_IN_CONFIG.items():
                if field == "resize":  # stays the run's own
                    continue
                value = getattr(data_group, option_name)
                # The weights give the whole crop, so no part of it may be given alone.
                if value != getattr(Preprocessing, field):
                    mistake = f"config.data.{option_name} is {value!r}"
                    raise InputError(f"{mistake}; give eval_crop, too")
                crop_values[option_name] = getattr(trained_config.preprocessing, field)
            data_group = dataclasses.replace(data_group, **crop_values)
        return dataclasses.replace(self, model=model_group, data=data_group)

    def to_dict(self) -> dict[str, Any]:
        """The content of a run's config.json."""
        fields = dataclasses.asdict(self) | {"reduction": str(self.reduction)}
        return {"format": folder_files.RUN_FORMAT, **fields}

    def _create_model(self, reduction, masked=False):
        """Build the model; `masked`: it may train with masks in place of removals."""
        from imagepiece_jax.models import create  # imports JAX

        model_group = self.model
        with titled_errors("config"):
            execution = create.make_execution(
                self.vit_config, model_group.dtype, model_group.attention
            )
            rate = model_group.drop_path_rate
            execution = dataclasses.replace(execution, drop_path_rate=rate)
            return create.build_model(self.vit_config, reduction, execution, masked)

    def saves_step(self, step: int) -> bool:
        """Whether `step` is saved even if no evaluation follows."""
        intervals = self.checkpoint_every_steps, self.keep_every_steps
        return any(interval and step % interval == 0 for interval in intervals)


def _read_options(options_class, values):
    """Make a dataclass, and the dataclasses in its fields, from nested dicts."""
    option_values = dict(values)
    for field in dataclasses.fields(options_class):
        value = option_values[field.name]  # no default: another version's may differ
        if dataclasses.is_dataclass(field.type):
            option_values[field.name] = _read_options(field.type, value)
    return options_class(**option_values)
