"""Adaptation of a checkpoint to reductions, by folds of the images.

For each fold a run of train.py starts from the checkpoint, learns from all other images
and is tested on the fold, so that every image is answered by a model that has not seen
it, and compared with what the checkpoint answers unadapted. Labels of training images
are not read where the config's loss does without. A fold's figures are one result of
the cache; a run that was stopped resumes from its own checkpoint.
"""

import csv
import hashlib
import io
import json
import os
import shutil
from typing import TYPE_CHECKING

import jax
import numpy as np

from experiments import render
from experiments.context import Answers, package_config
from experiments.finetune import finetuning_config, label
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.pretrained.load import read
from imagepiece_jax.pretrained.runs import CHECKPOINTS, reduction_of
from imagepiece_jax.reduction import settings
from imagepiece_jax.training.config import DistillConfig, RunConfig
from imagepiece_jax.training.trainer import train_and_evaluate

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CONFIG = "deit_ti_distill_finetune_small.py"
REDUCTIONS = ("imagepiece", "tome", "evit")  # of CONFIG without --config
# Fields of a config that do not say how is trained.
ELSEWHERE = ("data.name", "data.dir", "data.workers", "data.threads")
ELSEWHERE += ("init.weights", "teacher.weights", "progress", "log_every_steps")
HEAD = (
    *("model", "GMACs", "unadapted, acc1, %", "adapted, acc1, %"),
    *("adapted - unadapted, points", "adapted - dense, points"),
    "adapted - unadapted by fold",
)


def adapt(context):
    """Adapt the checkpoint to each reduction, fold by fold, and write the page."""
    images, labels = context.images, _labels(context.images)
    count = context.settings.folds
    if not 2 <= count <= len(images):
        allowed = f"2 to the images of --data, {len(images)}"
        raise InputError(field="--folds", value=count, allowed=allowed)
    parts = folds(len(images), count)
    configs = [_prepared(context, config) for config in _configs(context)]
    dense, rows = context.evaluate(context.pretrained, settings.DENSE), []
    for config in configs:
        reduction = reduction_of(config.to_dict())
        before = context.evaluate(context.pretrained, reduction)
        after = np.zeros(len(images), bool)
        name = settings.label(settings.changed(reduction))
        for fold, part in enumerate(parts):
            print(f"{name}, fold {fold + 1} of {count}", flush=True)
            after[part] = _fold(context, config, reduction, labels, fold, parts).right
        line = [name, f"{before['gmacs']:.3f}"]
        for right in (before.right, after):
            line.append(statistics.format_estimate(statistics.accuracy(right)))
        for base in (before, dense):
            points = 100.0 * (after.astype(int) - base.right)
            by_fold = [points[part].mean() for part in parts]
            line.append(statistics.format_difference(statistics.student(by_fold)))
            if base is before:
                each = " ".join(f"{value:+.1f}" for value in by_fold)
        rows.append([*line, each])
    title = "a checkpoint adapted to reductions, each image tested by a fold's model"
    facts = _facts(context, configs[0], dense.accuracy, parts)
    render.page(context, "adapt", title, render.table(HEAD, rows), facts)


def folds(images: int, count: int) -> tuple[np.ndarray, ...]:
    """Indices of `count` disjoint parts, which are all images; as even as can be."""
    order = np.random.default_rng(0).permutation(images)
    return tuple(np.sort(part) for part in np.array_split(order, count))


def _configs(context):
    """The config of --config alone, else those of the three reductions."""
    if context.config is not None:
        return [context.config]
    return [package_config(f"{CONFIG}:{name}") for name in REDUCTIONS]


def _prepared(context, config) -> "ConfigDict":
    """The config of a fold's run, but for its images."""
    pretrained, images = context.pretrained, context.images
    config = config.copy_and_resolve_references()
    config = finetuning_config(
        config,
        pretrained,
        pretrained.config.dtype,
        images.resize,
        images.workers,
        typed=context.config is not None,
    )
    config.image_size = images.image_size
    config.num_classes = pretrained.config.num_classes
    config.init.weights = str(pretrained.path)
    learns = RunConfig.from_config(config).reduction.needs_teacher
    learns = learns or DistillConfig.from_config(config).active
    if learns and not config.teacher.weights:
        config.teacher.weights = str(pretrained.path)
    # One evaluation, at the end: no checkpoint is chosen on the test images.
    config.eval_every_epochs, config.init.evaluate = config.epochs, False
    config.progress, config.pictures = False, 0
    RunConfig.from_config(config).create_model()
    return config


def _labels(images):
    """Labels of the images, each decoded; InputError where one is no file."""
    source = images.source
    if not os.path.isfile(source.name(0)):
        problem = "has images that are no files, which a table cannot name"
        allowed = "csv:FILE and folder:PATH"
        raise InputError(problem, field="--data", value=images.name, allowed=allowed)
    return [source.read(index)[1] for index in range(len(source))]


def _unlabeled(config):
    """Whether the loss reads no labels of training images."""
    return DistillConfig.from_config(config).unlabeled


def _fold(context, config, reduction, labels, fold, parts) -> Answers:
    """The Answers on one fold of the model that was trained on the others.

    Each fold has a seed of its own, so that the folds differ in all that is chance.
    """
    pretrained, images = context.pretrained, context.images
    config = config.copy_and_resolve_references()
    config.seed += fold
    setting = {
        "kind": "adapt",
        "weights": pretrained.digest,
        "fields": pretrained.config.as_dict,
        "reduction": settings.with_defaults(reduction),
        "recipe": _recipe(config, pretrained),
        "folds": len(parts),
        "fold": fold,
        **images.setting,
    }
    # A name of this setting alone: a run never resumes with other images or weights.
    text = json.dumps(setting, sort_keys=True).encode()
    key = hashlib.sha256(text).hexdigest()[:10]
    name = f"{label(settings.changed(reduction))}_fold{fold}_{key}"
    folder = context.out / "adapt"

    def measure():
        table, workdir = folder / f"{name}.csv", folder / name
        folder.mkdir(parents=True, exist_ok=True)
        text = _table(images.source, labels, parts[fold], _unlabeled(config))
        replace_file(table, text)
        of_fold = config.copy_and_resolve_references()
        of_fold.data.name = f"csv:{table.absolute()}"
        train_and_evaluate(of_fold, workdir)
        jax.clear_caches()  # its programs would stay, and no other run uses them
        trained = read(workdir, checkpoint="latest").analyzed(pretrained.config.dtype)
        result = context.evaluate(trained, reduction, images.subset(parts[fold]))
        # A fold takes a hundred megabytes; only these figures are needed.
        shutil.rmtree(workdir / CHECKPOINTS)
        return result.figures

    return Answers(context.cache.result(setting, measure, f"fold {fold + 1}"))


def _table(source, labels, tested, unlabeled) -> str:
    """A table of all files, with these to be tested on; CSV."""
    text, tested = io.StringIO(), set(map(int, tested))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("filename", "label", "split"))
    for index, number in enumerate(labels):
        test = index in tested
        cell = number if test or not unlabeled else ""
        path = os.path.abspath(source.name(index))
        writer.writerow((path, cell, "val" if test else "train"))
    return text.getvalue()


def _recipe(config, pretrained):
    """The fields of a config that decide the result; JSON values."""
    config = config.copy_and_resolve_references()
    other = {config.teacher.weights} - {"", str(pretrained.path)}
    for field in ELSEWHERE:
        group, _, name = field.rpartition(".")
        owner = config[group] if group else config
        with owner.unlocked():
            del owner[name]
    return json.loads(json.dumps(config.to_dict())) | {"other_teacher": sorted(other)}


def _facts(context, config, dense, parts):
    """How the figures came to be."""
    length = RunConfig.from_config(config).length(len(context.images) - len(parts[0]))
    distill, learned = DistillConfig.from_config(config), "labels"
    if distill.active:
        soft = f" at temperature {distill.temperature:g}" * (distill.kind == "soft")
        learned = f"{distill.kind} answers{soft}, weight {distill.weight:g}"
        learned += ", labels unread" * distill.unlabeled
    rows = {
        "dense, unadapted, acc1, %": statistics.format_estimate(dense),
        "dense, GMACs": f"{context.pretrained.config.gmacs():.3f}",
        "folds, each answered by what learned from the others": len(parts),
        "intervals of differences": "Student's over the folds",
        "learned from": learned,
        "training": f"{config.epochs} epochs, {length.steps} steps of "
        f"{config.batch_size} images, a seed for each fold",
    }
    return render.facts(context, rows)
