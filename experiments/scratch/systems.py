"""The systems that are compared: their models, matched in cost, and their recipe."""

import dataclasses
import functools
import types

import jax

from experiments.scratch.options import Options
from imagepiece_jax.benchmark import match_cost
from imagepiece_jax.data.augment.policy import Augment, Crop
from imagepiece_jax.models import registry, summary
from imagepiece_jax.reduction import methods, settings
from imagepiece_jax.training import optimizer
from imagepiece_jax.training.config import REFERENCE_BATCH, OptimConfig
from imagepiece_jax.training.train_step import Recipe, train_step

NEAR = 0.02  # share of ImagePiece's cost within which another one counts as equal
HEAD_DIM = 64  # of attention, as in DeiT


# The same for all systems: DeiT's recipe toned down for ten thousand images.
RECIPE = types.MappingProxyType(
    {
        "crop_area": (0.35, 1.0),
        "label_smoothing": 0.1,
        "weight_decay": 0.05,
        "warmup_share": 0.1,  # of the run
        "min_lr": 1e-5,
        "warmup_lr": 1e-6,
        "clip_norm": 1.0,
        # Of DynamicViT's backbone, which starts trained; its authors' 0.01 and five
        # frozen epochs are for longer runs.
        "backbone_lr": 0.1,
    }
)


@dataclasses.dataclass(frozen=True)
class System:
    """One of the compared.

    start: the system whose weights its runs start from and learn from, of the same
    seed; harsher: keep rates at which its runs are evaluated, too, without training.
    """

    name: str
    title: str
    stem: str
    reduction: dict
    start: str | None = None
    harsher: tuple[float, ...] = ()

    @property
    def method(self):
        """The Method of its reduction, as it is trained."""
        own, _ = settings.split(self.reduction)
        known = {f.name for f in dataclasses.fields(methods.create(**own))}
        training = {"backbone_lr": RECIPE["backbone_lr"], "frozen_epochs": 0.0}
        return methods.create(
            **own, **{k: v for k, v in training.items() if k in known}
        )


DENSE = "dense_conv"  # the first: others start from it, all are compared with it
RANDOM = "random"
HARSHER = (0.8, 0.6, 0.4, 0.3)  # keep rates, of those the ones below the trained one


def systems(options: Options, num_classes: int, dtype: str) -> list[System]:
    """The chosen systems in the order of their runs, each at ImagePiece's cost.

    "dropping" is ImagePiece's control: its merge steps drop as many tokens. With the
    patch stem as with the convolutional one steps leave the same counts.
    """
    first = System(DENSE, "dense, conv stem", "conv", settings.DENSE)
    cost = functools.partial(gmacs, first, options, num_classes, dtype)
    reference = {"name": "imagepiece", "keep_rate": options.keep_rate}
    blocks = tuple(options.depth * k // 4 for k in (1, 2, 3))  # 3, 6, 9 of twelve
    at = {"blocks": blocks}

    def matched(title, reduction, start=None):
        candidates = _candidates(reduction, options)
        priced = match_cost.priced(cost, candidates)
        _, found = match_cost.closest(priced, cost(reference))
        return System(reduction["name"], title, "conv", found, start)

    harsher = tuple(rate for rate in HARSHER if rate < options.keep_rate)

    def nine_steps(name, title, stem, **control):
        return System(name, title, stem, reference | control, harsher=harsher)

    drop = {"inattentive": "drop"}
    found = [
        first,
        System("dense_patch", "dense, patch stem", "patch", settings.DENSE),
        nine_steps("imagepiece_conv", "ImagePiece, conv stem", "conv"),
        nine_steps("imagepiece_patch", "ImagePiece, patch stem", "patch"),
        nine_steps("dropping_conv", "dropping, conv stem", "conv", **drop),
        nine_steps("dropping_patch", "dropping, patch stem", "patch", **drop),
    ]
    for title, reduction, start in (
        ("EViT", {"name": "evit"} | at, None),
        ("ToMe", {"name": "tome"}, None),
        ("DynamicViT", {"name": "dynamicvit"} | at, DENSE),
        ("random tokens", {"name": RANDOM} | at, None),
    ):
        if reduction["name"] in options.chosen:
            found.append(matched(title, reduction, start))
    return [system for system in found if system.name in options.chosen]


def _candidates(reduction, options):
    """`reduction` in small steps of its cost: for ToMe by single tokens in all."""
    if reduction["name"] != "tome":
        return match_cost.settings(reduction, options.depth)
    depth, patches = options.depth, (options.image_size // options.patch) ** 2
    return [
        reduction | {"r_list": tuple((total + i) // depth for i in range(depth))[::-1]}
        for total in range(patches)
    ]


def create(system, options, num_classes, dtype, reduction=None, **fields):
    """The model of `system`, or with another reduction of its method."""
    return registry.create_model(
        "vit_mini",
        image_size=options.image_size,
        num_classes=num_classes,
        reduction=reduction or system.reduction,
        stem=system.stem,
        patch_size=options.patch,
        embed_dim=options.width,
        depth=options.depth,
        num_heads=options.heads or max(1, options.width // HEAD_DIM),
        dtype=dtype,
        attention="xla",  # the same for every reduction
        **fields,
    )


def gmacs(system, options, num_classes, dtype, reduction=None):
    """GMACs of one image, counted from the plan."""
    model = create(system, options, num_classes, dtype, reduction)
    return summary.model_macs(model, options.image_size) / 1e9


def recipe(options, num_classes, seed) -> Recipe:
    """Augmentation and targets; `seed` may be traced."""
    crop = Crop(options.image_size, RECIPE["crop_area"], flip=True)
    return Recipe(
        seed=seed,
        num_classes=num_classes,
        label_smoothing=RECIPE["label_smoothing"],
        augment=Augment(crop=crop),
    )


def adamw(system, options, steps):
    """(rate, optimizer) of a run of `steps`, which may be traced.

    The schedule takes the run for one epoch: so its length is no part of the program.
    """
    optim = OptimConfig(
        epochs=1,
        batch_size=REFERENCE_BATCH,  # the rate is not scaled
        lr=options.peak_lr,
        min_lr=RECIPE["min_lr"],
        warmup_lr=RECIPE["warmup_lr"],
        warmup_epochs=RECIPE["warmup_share"],
        lr_offset=0,
        weight_decay=RECIPE["weight_decay"],
        betas=(0.9, 0.999),
        eps=1e-8,
        clip_grad_norm=RECIPE["clip_norm"],
    )
    return optimizer.create(optim, steps, system.method.param_groups)


def steps(system, options, num_classes, model, teacher_model):
    """Some training steps from resident images, in one program.

    (state, index int32 [k, 1, m] of the images, run, data, teacher) -> (state, losses
    [k]); run: seed and number of steps, data: `Resident.fields`.
    """
    loss = system.method.loss
    terms = loss and functools.partial(loss, plan=model.plan)

    def several(state, indices, run, data, teacher):
        rate, adam = adamw(system, options, run["steps"])
        one = functools.partial(
            train_step,
            teacher=teacher,
            model=model,
            optimizer=adam,
            rate=rate,
            recipe=recipe(options, num_classes, run["seed"]),
            loss_terms=terms,
            teacher_model=teacher_model,
        )

        def take(state, index):
            batch = {name: values[index] for name, values in data.items()}
            state, metrics = one(state, batch)
            return state, metrics["loss"]

        if len(indices) == 1:  # in a loop XLA's convolutions on CPUs are 7 times slower
            state, loss = take(state, indices[0])
            return state, loss[None]
        return jax.lax.scan(take, state, indices)

    return several
