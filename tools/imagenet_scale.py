"""ImageNet-1k at its true size, synthetic, and measurements of the input on it.

python -m tools.imagenet_scale write DIR
python -m tools.imagenet_scale measure DIR

`write` makes imagenet2012 with all its 1,281,167 + 50,000 records in 1,024 + 64
array_record files. The images are tiny JPEGs, 0.7 GB in all. A run that was stopped
resumes. `measure` opens and reads the set as training does, with the fields of
configs/base.py, under several limits of file descriptors, and prints the table of
docs/tables/input.md. Its exit status is 1 where a goal is missed.
"""

import contextlib
import io
import itertools
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

import numpy as np
from PIL import Image
from tqdm import tqdm

from imagepiece_jax import cli
from imagepiece_jax.common.files import make_folder
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.config import command_line
from imagepiece_jax.config.files import BASE, load_config
from imagepiece_jax.errors import InputError, RunError

CONFIG = cli.define_config("a config file; default: configs/base.py")
TRAIN = cli.listed("train", ["1281167", "1024"], "write: images, files")
VAL = cli.listed("val", ["50000", "64"], "write: images, files")
LIMITS = cli.listed(
    "fd_limits", ["1024:4096", "256:256"], "soft:hard limits of descriptors"
)
READERS = cli.listed("reader_counts", ["2", "4", "8"], "processes, for images/s")
RESUME = cli.integer("resume", 300_000, "step to resume at", 1)
SECONDS = cli.real("rate_seconds", 20, "of reading for each images/s", 0)
BATCHES = cli.integer("batches", 20_000, "of 64 images, for growth", 10)
PART = cli.listed("part", [], "measure: one part only, as JSON; internal")

PICTURES = 100  # distinct ones, which all records share
SMALL_BATCH = 64
AROUND = 16  # batches before and after an epoch's end
RESOURCES = {"pss": "PSS", "fd": "descriptors", "task": "threads"}


def main(words):
    if len(words) != 2 or words[0] not in ("write", "measure"):
        value = " ".join(words)
        raise InputError("words", value, "write DIR, measure DIR")
    folder = pathlib.Path(words[1]).resolve()
    if words[0] == "write":
        write(folder, {"train": _pair(TRAIN), "validation": _pair(VAL)})
        return 0
    if PART.value:
        name, *values = PART.value
        print(json.dumps(PARTS[name](_config(folder), *map(int, values))))
        return 0
    if not (folder / "imagenet2012").is_dir():
        raise InputError(
            problem="has no imagenet2012", place=folder, hint="write one there"
        )
    return measure(folder)


def _pair(holder, text=None):
    """Two whole numbers from the text of a flag; InputError."""
    text = text or ",".join(holder.value)
    pair = re.fullmatch(r"(\d+)[,:](\d+)", text)
    if not pair or not all(map(int, pair.groups())):
        raise InputError(f"--{holder.name}", text, "two numbers from 1")
    return tuple(map(int, pair.groups()))


def write(folder, sizes):
    """Write {split: (images, files)} into `folder`."""
    from tools.imagenet import scan, writer

    make_folder("DIR", folder)
    pictures = folder / "pictures"
    places = []
    start = 0
    with open(pictures, "wb") as file:
        for seed in range(PICTURES):
            size = file.write(_jpeg(seed))
            places.append((str(pictures), start, size))
            start += size
    classes = scan.class_names()
    labels = scan.validation_labels()
    entries = {"train": [], "validation": []}
    for i in range(sizes["train"][0]):
        count, label = divmod(i, len(classes))
        name = f"{classes[label]}_{count}.JPEG"
        entries["train"].append(scan.Entry(name, label, *places[i % PICTURES]))
    for i, label in enumerate(labels[: sizes["validation"][0]]):
        name = f"ILSVRC2012_val_{i + 1:08d}.JPEG"
        entries["validation"].append(scan.Entry(name, label, *places[i % PICTURES]))
    with tqdm(total=sum(map(len, entries.values())), unit="image") as bar:
        writer.write(
            entries,
            folder,
            workers=os.cpu_count(),
            advance=lambda images, before=False: bar.update(images),
            files={split: files for split, (_, files) in sizes.items()},
        )
    pictures.unlink()


def _jpeg(seed):
    """A JPEG of smooth colors, 24 x 18 pixels, some 400 bytes."""
    colors = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(colors).resize((24, 18), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=40, optimize=True)
    return file.getvalue()


def _config(folder):
    """The config of the measurements; a part of them starts with training's imports."""
    if PART.value:
        from imagepiece_jax.training import trainer  # noqa: F401
    config = load_config(CONFIG.value[0] if CONFIG.value else BASE)
    command_line.overrides().apply(config)
    config.data.name = "imagenet2012"
    config.data.dir = str(folder)
    return config


# The parts of a measurement: each in a process of its own, with its own limits.


def start(config, step):
    """Seconds to open both splits and to the first batch, from `step` on."""
    from imagepiece_jax.config.run import RunConfig
    from imagepiece_jax.training.data import open_images

    began = time.perf_counter()
    source = open_images(RunConfig.from_config(config), "train")
    open_images(RunConfig.from_config(config), "val")
    ready = time.perf_counter()
    with contextlib.closing(_batches(config, source, step)) as batches:
        next(batches)
        first = time.perf_counter()
    return {"open": ready - began, "first": first - ready}


def epoch_end(config):
    """Median and longest seconds of a batch, and those of the first of a new epoch."""
    from imagepiece_jax.config.run import RunConfig
    from imagepiece_jax.input import loader
    from imagepiece_jax.training.data import open_images

    source = open_images(RunConfig.from_config(config), "train")
    end = loader.steps_per_epoch(len(source), config.batch_size)
    with contextlib.closing(_batches(config, source, end - 2 * AROUND)) as batches:
        for _ in itertools.islice(batches, AROUND):  # read ahead of the first
            pass
        seconds = []
        for _ in range(2 * AROUND):
            began = time.perf_counter()
            next(batches)
            seconds.append(time.perf_counter() - began)
    return {"median": statistics.median(seconds), "longest": max(seconds)}


def rate(config, workers):
    """Images a second of the clock with so many reading processes."""
    from imagepiece_jax.config.run import RunConfig
    from imagepiece_jax.training.data import open_images

    source = open_images(RunConfig.from_config(config), "train")
    count = 0
    config.data.workers = workers
    with contextlib.closing(_batches(config, source, 0)) as batches:
        for _ in itertools.islice(batches, 8):  # read while processes started
            pass
        began = time.perf_counter()
        while time.perf_counter() - began < SECONDS.value:
            next(batches)
            count += config.batch_size
        return {"rate": count / (time.perf_counter() - began)}


def growth(config, count):
    """Resources of each process after a tenth of `count` small batches and at the end.

    The first tenth crosses an epoch's end.
    """
    from imagepiece_jax.config.run import RunConfig
    from imagepiece_jax.input import loader
    from imagepiece_jax.training.data import open_images

    config.batch_size = SMALL_BATCH
    source = open_images(RunConfig.from_config(config), "train")
    end = loader.steps_per_epoch(len(source), SMALL_BATCH)
    first = max(0, end - count // 20)
    samples = []
    began = time.perf_counter()
    with contextlib.closing(_batches(config, source, first)) as batches:
        for number, _ in enumerate(itertools.islice(batches, count), start=1):
            if number % (count // 10) == 0:
                samples.append({pid: _resources(pid) for pid in process_tree()})
                print(f"batch {number:,}", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - began
    return {"samples": samples, "rate": count * SMALL_BATCH / seconds}


PARTS = {"start": start, "epoch_end": epoch_end, "rate": rate, "growth": growth}


def _batches(config, source, step):
    """The batches from `step` on as a run reads them."""
    from imagepiece_jax.common import parallel
    from imagepiece_jax.config.run import RunConfig
    from imagepiece_jax.input import loader

    run = RunConfig.from_config(config)
    sequence = loader.TrainBatches(
        source,
        run.data.train_transform(run.image_size),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=step,
        stop_step=step + 10**6,
        placement=parallel.placement(config.grad_accum_steps),
        repeats=config.data.repeats,
    )
    return loader.read_ahead(sequence, config.data.workers, config.data.threads)


def _resources(pid):
    """MB of memory, shared pages counted in proportion, descriptors and threads."""
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("Pss:"))
    counts = {kind: len(os.listdir(f"/proc/{pid}/{kind}")) for kind in ("fd", "task")}
    return {"pss": int(line.split()[1]) / 1e3} | counts


def process_tree():
    """Numbers of this process, first, and of all below it; OSError but on Linux."""
    pids = [os.getpid()]
    for pid in pids:
        tasks = pathlib.Path(f"/proc/{pid}/task")
        for task in tasks.iterdir():
            pids += map(int, (task / "children").read_text().split())
    return pids


def measure(folder):
    """Print the table; 1 where a goal is missed."""
    columns = {}
    for limits in LIMITS.value:
        run = _Run(limits)
        columns[limits] = {
            **run("start", 0),
            "resume": run("start", RESUME.value)["first"],
            **run("epoch_end"),
            **{f"rate {n}": run("rate", n)["rate"] for n in READERS.value},
            **_grown(**run("growth", BATCHES.value)),
        }
    print(f"{os.cpu_count()} cores, config.data.workers={_config(folder).data.workers}")
    heads = ["", "goal", *(f"`ulimit -n` {limits}" for limits in columns)]
    rows = []
    met = True
    for key, name, text, goal in _lines():
        values = [column[key] for column in columns.values()]
        met &= goal is None or max(values) <= goal
        wanted = "" if goal is None else f"≤ {text.format(goal)}"
        rows.append([name, wanted, *map(text.format, values)])
    print(markdown_table(heads, rows))
    return 0 if met else RunError.status


def _lines():
    """Each line of the table: its key, its name, how it is printed and its goal."""
    yield "open", "open train and val, s", "{:.1f}", 2
    yield "first", "first batch, s", "{:.1f}", None
    yield "resume", f"first batch from step {RESUME.value:,}, s", "{:.1f}", 5
    yield "median", "a batch, s, median", "{:.2f}", None
    yield "longest", "a batch across an epoch's end, s, longest", "{:.2f}", None
    for n in READERS.value:
        yield f"rate {n}", f"images/s, {n} readers", "{:,.0f}", None
    yield "rate", f"images/s, batches of {SMALL_BATCH}", "{:,.0f}", None
    for who in ("training process", "largest reader"):
        yield f"{who} pss", f"PSS, {who}, MB", "{:,.0f}", 1000
        yield f"{who} fd", f"descriptors, {who}", "{}", None
        yield f"{who} task", f"threads, {who}", "{}", None
    between = f"from batch {BATCHES.value // 10:,} to {BATCHES.value:,}, any process"
    for kind, name in RESOURCES.items():
        yield f"growth {kind}", f"growth of {name} {between}", "{:.1%}", 0.02


class _Run:
    """A part of the measurement in a process with these limits of descriptors."""

    def __init__(self, limits):
        import resource  # which Windows does not have

        soft, hard = _pair(LIMITS, limits)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
        limits = resource.RLIMIT_NOFILE, (min(soft, hard), hard)
        self.limits = limits[1]
        self.limit = lambda: resource.setrlimit(*limits)

    def __call__(self, *part):
        part = f"--part={','.join(map(str, part))}"
        print(*self.limits, part, file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "tools.imagenet_scale", *sys.argv[1:], part],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=self.limit,
        )
        if done.returncode:
            raise RunError(f"{part} has ended with status {done.returncode}, see above")
        return json.loads(done.stdout.splitlines()[-1])


def _grown(samples, rate):
    """Values of the table: what processes held at most, and the growth of any."""
    first = samples[0]
    last = samples[-1]
    values = {"rate": rate}
    for kind in RESOURCES:
        most = [max(sample[pid][kind] for sample in samples) for pid in last]
        values[f"training process {kind}"] = most[0]
        values[f"largest reader {kind}"] = max(most[1:], default=0)
        grown = (last[pid][kind] / first[pid][kind] - 1 for pid in last)
        values[f"growth {kind}"] = max(grown)
    return values


if __name__ == "__main__":
    cli.run(main)
