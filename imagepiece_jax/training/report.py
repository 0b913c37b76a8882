"""Texts about a run: an estimate, a dry run's findings, and the result table."""

import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax

from imagepiece_jax.common import parallel
from imagepiece_jax.common.progress import duration_text
from imagepiece_jax.data.sources.imagenet_tfds import CountedSource
from imagepiece_jax.models.cost import TRAINING_MACS, cost_summary, model_macs
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.training import optimizer
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.data import RunData, find_run_length
from imagepiece_jax.training.logging import print_line, read_metrics
from imagepiece_jax.training.train_step import count_programs

if TYPE_CHECKING:
    from imagepiece_jax.training.trainer import Run

EFLOP_UNIT = " (1e18 operations, two a MAC)"
LISTED_CLASSES = 5  # class names in the text about the data


def macs_by_epoch(run: RunConfig) -> list[float]:
    """Forward-pass MACs per image, in every epoch; keep rates may differ."""
    # MACs differ between epochs only by the keep rate.
    rate_at = run.reduction.method.rate_at
    macs_by_rate = {}
    macs = []
    for epoch in range(run.epochs):
        keep_rate = rate_at(epoch) if rate_at else None
        if keep_rate not in macs_by_rate:
            macs_by_rate[keep_rate] = model_macs(run.create_train_model(epoch))
        macs.append(macs_by_rate[keep_rate])
    return macs


def training_flop(
    run: RunConfig, images: int, teacher_macs: float | None = None
) -> float:
    """Operations of all training steps, two per MAC.

    Evaluations and repeated computations (`remat`) do not count.

    teacher_macs: the teacher's MACs per image; None: a run's teacher is the dense model
    """
    if teacher_macs is None:
        teacher_macs = model_macs(run.create_dense()) if run.needs_teacher else 0
    length = find_run_length(run, images)
    # A step is a forward pass, a backward pass of twice its cost, and the teacher's
    # forward pass.
    macs = TRAINING_MACS * sum(macs_by_epoch(run)) + length.epochs * teacher_macs
    return 2.0 * length.steps_per_epoch * run.batch_size * macs


def describe_dry_run(run: "Run") -> str:
    """Describe a Run's memory and length. Compiles the last epoch's training step."""
    config = run.setup.config
    data = run.setup.data
    length = data.length
    print_line("compiling the training step, which takes minutes on a few CPU cores")
    start_time = time.perf_counter()
    program = run.compile_step(length.epochs - 1)
    seconds = time.perf_counter() - start_time
    # One device's copy.
    state = parallel.unreplicate(run.state)
    megabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    teacher = run.teacher
    teacher_macs = model_macs(teacher.model) if teacher else 0
    operations = training_flop(config, len(data.train), teacher_macs)
    return (
        f"memory on each of {parallel.device_count()} devices: {megabytes:,.0f} MB of "
        f"weights, optimizer and averages, {program.working_bytes / 1e6:,.0f} MB of "
        f"working space in the program for {jax.devices()[0].device_kind}, unlike that "
        f"for another device (compiled in {seconds:.0f} s)\n"
        f"{length.steps} steps: {length.epochs} epochs of {length.steps_per_epoch}, "
        f"{operations / 1e18:#.3g} EFLOP{EFLOP_UNIT}; "
        f"programs to compile: {count_programs(config)}; dry run: nothing "
        "was written"
    )


def describe_data(config: RunConfig, data: RunData) -> str:
    """Describe the data, and the learning rate after the warm-up."""
    absent_splits = [
        name for name in ("train", "val") if isinstance(vars(data)[name], CountedSource)
    ]
    note = ""
    if absent_splits:
        note = f" (not read: {' and '.join(absent_splits)} are its published numbers)"
    names = data.train.class_names
    classes = f"{config.num_classes} classes"
    if names is not None:
        classes += ": " + ", ".join(map(str, names[:LISTED_CLASSES]))
    train, val = (s.split and f" ({s.split})" for s in (data.train, data.val))
    if data.val.split == "test":
        classes += "; test chooses nothing, so the last checkpoint is the best"
    warmup = optimizer.warmup_steps(config, data.length.steps_per_epoch)
    return (
        f"data: {config.data.name}, {len(data.train):,} training images{train}, "
        f"{len(data.val):,} validation images{val}, {classes}{note}\n"
        f"learning rate: {config.peak_lr:.4g} ({config.lr:.4g} per 512 images) after a "
        f"warm-up of {warmup} of {data.length.steps} steps"
    )


def describe_model(model: ViT, dense: ViT) -> str:
    """Describe a model's cost, and the devices it trains on."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    return (
        f"{cost_summary(model, [dense])}\n"
        f"devices: {parallel.device_count()} ({', '.join(kinds)}); "
        f"processes: {jax.process_count()}"
    )


def describe_results(run: "Run") -> str:
    """The result table: accuracy, tokens and cost of the model, time, folder."""
    setup = run.setup
    model = setup.model
    best = run.progress.best
    macs = model_macs(model) / 1e9
    dense = model_macs(setup.dense) / 1e9
    layers = [model.plan[0].attn_tokens, *(p.mlp_tokens for p in model.plan)]
    rows = [
        ("accuracy", _format_accuracy(run.progress.last or {})),
        ("best", f"{best['acc1']:.2f} % at step {best['step']}"),
        ("tokens", " ".join(map(str, layers)) + "  (into block 0, then after each)"),
        ("cost", f"{macs:.4f} GMACs; dense {dense:.4f}, {dense / macs:.2f} times"),
        *_list_history(setup.workdir, setup.config.batch_size),
        ("folder", setup.workdir),
    ]
    return "\n".join(f"{name:12s} {value}" for name, value in rows)


def _list_history(workdir: pathlib.Path, batch_size: int) -> Iterator[tuple[str, str]]:
    """Table rows from the log: time, skipped steps."""
    lines = read_metrics(workdir)
    train = [line for line in lines if line["kind"] == "train"]
    throughputs = [line["throughput"] for line in train if line["throughput"]]
    if not throughputs:  # no step was timed
        return
    throughput = statistics.median(throughputs)
    steps = train[-1]["step"]
    spent = duration_text(steps * batch_size / throughput)
    text = f"{spent} of training, without compiling and evaluations"
    yield "time", f"{text}; {throughput:,.0f} images a second (median)"
    skipped = sum(line["skipped"] for line in train)
    if skipped:
        yield "skipped", f"{skipped} of {steps} steps, which were not finite"


def _format_accuracy(metrics: dict) -> str:
    text = f"top-1 {metrics['acc1']:.2f} %, top-5 {metrics['acc5']:.2f} %"
    text += f" of {metrics['images']} images"
    if metrics.get("ema_acc1") is not None:
        text += f"; averaged weights {metrics['ema_acc1']:.2f} %"
    return text
