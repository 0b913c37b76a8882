"""Texts about a run: an estimate, a dry run's findings, and the result table."""

from typing import TYPE_CHECKING

import jax

from imagepiece_jax.common import parallel
from imagepiece_jax.data.sources.imagenet_tfds import CountedSource
from imagepiece_jax.models.cost import TRAINING_MAC_FACTOR, cost_summary, model_macs
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.logging import print_line

if TYPE_CHECKING:
    from imagepiece_jax.training.trainer import Run, RunSetup


def count_training_flop(
    config: RunConfig, num_images: int, teacher_macs: float | None = None
) -> float:
    """Operations of all training steps, two per MAC.

    Evaluations and repeated computations (`remat`) do not count.

    teacher_macs: the teacher's MACs per image; None: a run's teacher is the dense model
    """
    if teacher_macs is None:
        teacher_macs = 0
        if config.needs_teacher:
            teacher_macs = model_macs(config.create_dense_model())
    # Forward passes differ between epochs only by the keep rate.
    keep_rate_at = config.reduction.method.rate_at
    macs_by_rate = {}
    image_macs = 0  # of an image, over all epochs
    for epoch in range(config.epochs):
        keep_rate = keep_rate_at(epoch) if keep_rate_at else None
        if keep_rate not in macs_by_rate:
            macs_by_rate[keep_rate] = model_macs(config.create_train_model(epoch))
        # A step is a forward pass, a backward pass of twice its cost, and the
        # teacher's forward pass.
        image_macs += TRAINING_MAC_FACTOR * macs_by_rate[keep_rate] + teacher_macs
    steps_per_epoch = num_images // config.batch_size
    return 2.0 * steps_per_epoch * config.batch_size * image_macs


def describe_dry_run(run: "Run") -> str:
    """Print a Run's length, then compile its last step and describe its memory."""
    config = run.setup.config
    data = run.setup.data
    length = data.length
    teacher = run.teacher
    teacher_macs = model_macs(teacher.model) if teacher else 0
    num_operations = count_training_flop(config, len(data.train_source), teacher_macs)
    print_line(
        f"{length.steps} steps: {length.epochs} epochs of {length.steps_per_epoch}, "
        f"{num_operations / 1e18:#.3g} EFLOP (1e18 operations, two a MAC)"
    )
    print_line("compiling the training step, which takes minutes on a few CPU cores")
    program = run.compile_step(length.epochs - 1)
    # One device's copy.
    device_state = parallel.unreplicate(run.state)
    state_megabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(device_state)) / 1e6
    return (
        f"memory on each of {parallel.device_count()} devices: {state_megabytes:,.0f} "
        f"MB of weights, optimizer and averages, {program.working_bytes / 1e6:,.0f} MB "
        f"of working space in the program for {jax.devices()[0].device_kind}, unlike "
        "that for another device\n"
        "dry run: nothing was written"
    )


def describe_setup(setup: "RunSetup") -> str:
    """Describe a run's data, peak learning rate, model's cost and devices."""
    config = setup.config
    data = setup.data
    data_texts = [config.data.name]
    sources = {"training": data.train_source, "validation": data.val_source}
    for use, source in sources.items():
        note = source.split and f" ({source.split})"  # "": the data have no splits
        if isinstance(source, CountedSource):
            note = " (its published number; not read)"
        data_texts.append(f"{len(source):,} {use} images{note}")
    class_text = f"{config.num_classes} classes"
    if data.train_source.class_names is not None:
        class_text += ": " + ", ".join(map(str, data.train_source.class_names[:5]))
    data_texts.append(class_text)
    if data.val_source.split == "test":
        data_texts.append("test chooses nothing, so the last checkpoint is the best")
    device_kinds = sorted({device.device_kind for device in jax.devices()})
    return (
        f"data: {', '.join(data_texts)}\n"
        f"learning rate: {config.peak_lr:.4g} ({config.lr:.4g} per 512 images) after a "
        f"warm-up of {config.warmup_epochs:g} of {config.epochs} epochs\n"
        f"{cost_summary(setup.model, [setup.dense_model])}\n"
        f"devices: {parallel.device_count()} ({', '.join(device_kinds)}); "
        f"processes: {jax.process_count()}"
    )


def describe_results(run: "Run") -> str:
    """The result table: accuracy and best step."""
    assert run.progress.last is not None  # a run ends by an evaluation
    metrics = run.progress.last
    accuracy_text = f"top-1 {metrics['acc1']:.2f} %, top-5 {metrics['acc5']:.2f} %"
    accuracy_text += f" of {metrics['images']} images"
    if metrics.get("ema_acc1") is not None:
        accuracy_text += f"; averaged weights {metrics['ema_acc1']:.2f} %"
    best_metrics = run.progress.best
    best_text = f"{best_metrics['acc1']:.2f} % at step {best_metrics['step']}"
    return f"accuracy     {accuracy_text}\nbest         {best_text}"
