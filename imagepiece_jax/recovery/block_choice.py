"""Choose the blocks where a model's tokens leave, on images without labels.

Which blocks are best differs between models (docs/results/peaks.md).
"""

import contextlib
import dataclasses
import logging
import statistics
from collections.abc import Sequence

import numpy as np

from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import share_of_dense
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.recovery import recovery_images, recovery_step

# Blocks where the same share leaves, in twelfths of the depth.
BLOCK_SETS = (
    *((3, 6, 9), (3, 4, 6), (3, 5, 7), (3, 5, 8), (2, 4, 6), (3, 4, 6, 8)),
    *((3, 5, 7, 9), (2, 4, 6, 8, 10), (2, 3, 4, 6, 8), (3, 4, 5, 6, 7, 8)),
    *(tuple(range(2, 9)), tuple(range(1, 12))),
)
MIN_IMAGES, MAX_IMAGES = 64, 200  # that choose
ERROR_RATE = 0.05  # of choosing among equal sets

log = logging.getLogger("imagepiece_jax.recover")


def choose_blocks(
    student: Pretrained, teacher: recovery_step.DenseTeacher, images: Source
) -> Pretrained:
    """Return the student with the set of blocks nearest to the dense model.

    Sets have the student's method and multiply-adds, and no more reductions than the
    student, so that none is slower. A recovered student stays as it is.

    Raises InputError for too few images.
    """
    if student.recovered_variant:
        return student
    if len(images) < MIN_IMAGES:
        raise InputError(f"images has {len(images)} to choose blocks, not {MIN_IMAGES}")
    batches = recovery_images.read_image_batches(
        images.evenly_spaced(MAX_IMAGES), student.preprocessing, 16
    )
    pairs = teacher.pair_outputs(batches)
    models = [student, *map(student.with_model, list_rivals(student))]
    distances = []
    for model in models:
        fit = recovery_step.StudentFit(model, recovery_step.RecoveryRecipe(), teacher)
        distances.append(fit.measure_held_out(pairs)["distance"])
    chosen = pick_nearest(distances)
    if chosen:
        means = " instead of ".join(f"{distances[i].mean():.4f}" for i in (chosen, 0))
        log.info("recover: %s is nearer, %s", models[chosen].reduction, means)
    return models[chosen]


def list_rivals(student: Pretrained) -> list[ViT]:
    """List the student in other BLOCK_SETS, at its cost, with no more reductions."""
    reduction = student.known_reduction()
    fields = {
        name: getattr(type(reduction.method), name)
        for name in reduction.method.amount_fields
    }
    fields["macs"] = share_of_dense(student.model)
    rivals = {token_counts(student.model): student.model}
    for twelfths in BLOCK_SETS:
        blocks = sorted({twelfth * student.model.depth // 12 for twelfth in twelfths})
        if len(blocks) > sum(layer.counts is not None for layer in student.model.plan):
            continue
        fields["counts"] = "-".join(["stages", *map(str, blocks)])
        method = dataclasses.replace(reduction.method, **fields)
        with contextlib.suppress(InputError):  # out of the method's reach
            model = student.reduced_model(dataclasses.replace(reduction, method=method))
            rivals.setdefault(token_counts(model), model)
    return list(rivals.values())[1:]


def token_counts(model: ViT) -> tuple[int, ...]:
    return tuple(layer.mlp_tokens for layer in model.plan)


def pick_nearest(distances: Sequence[np.ndarray]) -> int:
    """Pick the nearest, if it is nearer than the first beyond chance, or the first.

    The paired interval has Bonferroni's level for all rivals of the first.

    distances: of the same images, by set
    """
    nearest = int(np.argmin([values.mean() for values in distances]))
    changes = np.asarray(distances[nearest], np.float64) - distances[0]
    error = changes.std(ddof=1) / np.sqrt(len(changes))
    level = 1 - ERROR_RATE / 2 / max(1, len(distances) - 1)
    high = changes.mean() + statistics.NormalDist().inv_cdf(level) * error
    return nearest if high < 0 else 0
