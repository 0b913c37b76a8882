"""What should a person know before and after a run? Memory; results, time, places."""

import statistics
import time

import jax
from tqdm import tqdm

from imagepiece_jax.common import parallel
from imagepiece_jax.models import summary
from imagepiece_jax.training import from_config, optimizer
from imagepiece_jax.training.logging import TRACE
from imagepiece_jax.training.metrics import FILE, read_metrics
from imagepiece_jax.training.sample_images import PICTURE

SHOWN_CLASSES = 5  # names in the text of a dry run
# (row, path in the run's folder), for what is there
PLACES = (
    ("checkpoints", "checkpoints"),
    ("metrics", FILE),
    ("tensorboard", "tensorboard"),
    ("picture", PICTURE),
    ("trace", TRACE),
)


def memory_text(run, state):
    """What `run` takes: bytes of the state and of the compiled step, and its length."""
    config, length = run.config, run.length
    dealt = run.place.positions(config.batch_size).shape[1:]
    devices = parallel.device_count()

    def stack(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((devices, *x.shape), x.dtype), tree
        )

    began = time.perf_counter()
    teacher = None if run.teacher is None else stack(run.teacher)
    last = run.compiled_step(length.epochs - 1)
    compiled = last.compile(
        stack(state), stack(from_config.batch_shapes(config, dealt)), teacher
    )
    seconds = time.perf_counter() - began
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    working = compiled.memory_analysis().temp_size_in_bytes
    return (
        f"memory on each of {devices} devices: {held / 1e6:,.0f} MB of weights, "
        f"optimiser and averages, {working / 1e6:,.0f} MB of working space "
        f"({jax.devices()[0].device_kind}; compiled in {seconds:.0f} s)\n"
        f"{length.steps} steps: {length.epochs} epochs of "
        f"{length.steps_per_epoch}; programs to compile: "
        f"{from_config.train_programs(config)}; dry run: nothing was written"
    )


def data_text(run):
    """What a run trains and tests on, and its learning rate after the warm-up."""
    config, names = run.config, run.train_source.class_names
    train, val = len(run.train_source), len(run.val_source)
    classes = f"{config.num_classes} classes"
    if names is None:
        classes += ", not named"
    else:
        shown = ", ".join(map(str, names[:SHOWN_CLASSES]))
        classes += f": {shown}{', ...' * (len(names) > SHOWN_CLASSES)}"
    peak = optimizer.scaled_lr(config.lr, config.batch_size)
    by = f"{config.batch_size} / {optimizer.REFERENCE_BATCH}"
    return (
        f"data: {config.data.name}, {train:,} training images, {val:,} test images, "
        f"{classes}\n"
        f"learning rate: {peak:.4g} after the warm-up ({config.lr:.4g} x {by})"
    )


def final_table(workdir, config, model, dense, meta):
    """What came out: accuracy, tokens, cost, time, and where everything is."""
    last, best = meta["last"], meta["best"]
    ours = summary.model_macs(model, config.image_size) / 1e9
    theirs = summary.model_macs(dense, config.image_size) / 1e9
    layers = [model.plan[0].attn_tokens, *(p.mlp_tokens for p in model.plan)]
    rows = [
        ("accuracy", _accuracy(last)),
        ("best", f"{best['acc1']:.2f} % at step {best['step']}"),
        ("tokens", " ".join(map(str, layers)) + "  (into block 0, then after each)"),
        ("cost", f"{ours:.4f} GMACs; dense {theirs:.4f}, {theirs / ours:.2f} times"),
        *_course(read_metrics(workdir), config.batch_size),
    ]
    places = [(name, workdir / path) for name, path in PLACES]
    rows += [(name, path) for name, path in places if path.exists()]
    return "\n".join(f"{name:12s} {value}" for name, value in rows)


def _course(lines, batch_size):
    """Rows of what the log tells: the start, the time, and steps that were skipped."""
    for line in lines:
        if line["kind"] == "init":
            yield "at the start", f"{line['acc1']:.2f} %, the dense model as given"
    train = [line for line in lines if line["kind"] == "train"]
    if not train:
        return
    rates = [line["throughput"] for line in train if line["throughput"]]
    if not rates:  # every step was the first of its program
        return
    rate, seconds, before = statistics.median(rates), 0.0, 0
    for line in train:
        seconds += (line["step"] - before) * batch_size / (line["throughput"] or rate)
        before = line["step"]
    spent = tqdm.format_interval(seconds)
    course = f"{spent} of training, without compiling and evaluations"
    yield "time", f"{course}; {rate:,.0f} images a second (median)"
    skipped = sum(line["skipped"] for line in train)
    if skipped:
        yield "skipped", f"{skipped} of {before} steps, which were not finite"


def _accuracy(last):
    text = f"top-1 {last['acc1']:.2f} %, top-5 {last['acc5']:.2f} %"
    text += f" of {last['images']} images"
    if last.get("ema_acc1") is not None:
        text += f"; averaged weights {last['ema_acc1']:.2f} %"
    return text
