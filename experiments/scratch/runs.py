"""The runs of the comparison, one after the other; each leaves one JSON.

OUT/scratch/plan.json            settings, seconds of each system, epochs
OUT/scratch/SYSTEM_seedN.json    a finished run
OUT/scratch/SYSTEM_seedN/        the run, as train.py leaves it
OUT/scratch/points.jsonl         what was measured of finished runs
OUT/scratch.md                   the page, written anew by each call
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import time

import jax
from tqdm import tqdm

from experiments.context import Context
from experiments.images import Images
from experiments.scratch import measures, page, plan, systems
from experiments.scratch.options import SYSTEMS, Options
from experiments.settings import TableSettings
from imagepiece_jax.benchmark import device
from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.files import (
    check_writable,
    git_revision,
    read_json,
    replace_file,
)
from imagepiece_jax.data import loader, sources
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.cache import ResultCache
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.pretrained.load import read
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.logging import read_metrics
from imagepiece_jax.training.trainer import train_and_evaluate

PLAN = "plan.json"
FREE = ("minutes", "page", "systems")  # options that may change between calls
LENGTH = ("epochs", "hours")  # that may change until the epochs are planned
SAVE_EVERY = 60.0  # seconds, rounded up to epochs
# Fields that others' errors name, as flags of this command.
FLAGS = {
    "config.batch_size": "--train_batch_size",
    "config.model.embed_dim": "--width",
    "config.model.num_heads": "--heads",
    "config.model.patch_size": "--patch",
    "config.image_size": "--image_size",
    "--workdir": "--out",
}


def run(options: Options, data: str, settings: TableSettings):
    """Finish as many runs as `options.minutes` allow, and write the page.

    What is finished is only read; the data are not opened where everything is.
    """
    began = time.monotonic()
    folder = pathlib.Path(settings.out) / "scratch"
    if options.page:
        check_writable("--page", options.page)
    made = read_plan(folder, options, settings.dtype or xla_options.fast_dtype())
    with _flags_named():
        finished(folder, made)  # those of another plan, before anything is trained
        if made["epochs"] is None or _missing(folder, options.chosen, settings.seeds):
            cache = ResultCache(folder, settings.again, device.versions())
            with contextlib.closing(cache):
                _train(options, data, settings, made, folder, cache, began)
        text = page.text(finished(folder, made), made)
    replace_file(options.page or folder.with_suffix(".md"), text)
    print(text, flush=True)


@contextlib.contextmanager
def _flags_named():
    """Errors about a field of a config are about a flag here."""
    try:
        yield
    except InputError as error:
        text = str(error)
        for field, flag in FLAGS.items():
            text = text.replace(field, flag)
        raise InputError(text) from error


def read_plan(folder: pathlib.Path, options: Options, dtype: str) -> dict:
    """The plan in `folder`, or a new one; InputError where it has other settings."""
    asked = {k: v for k, v in dataclasses.asdict(options).items() if k not in FREE}
    asked = _as_json(asked | systems.RECIPE | {"dtype": dtype})
    path = folder / PLAN
    if not path.exists():
        return {"settings": asked, "images": None, "seconds": {}, "epochs": None}
    made = read_json(path)
    _check_fields(made, ("settings", "images", "seconds", "epochs"), path)
    if made["epochs"] is None:
        made["settings"] |= {name: asked[name] for name in LENGTH}
    _check_same(asked, made["settings"], path)
    return made


def _train(options, data, settings, made, folder, cache, began):
    """Complete the plan, and train what is missing."""
    dtype = made["settings"]["dtype"]
    train, test = (sources.open_source(data, split) for split in sources.SPLITS)
    _check_data(made, data, train, test, folder)
    classes = train.num_classes
    compared = {one.name: one for one in systems.systems(options, classes, dtype)}
    configs = {
        name: systems.config(one, options, classes, dtype)
        for name, one in compared.items()
    }
    for config in configs.values():
        config.data.name, config.data.workers = data, settings.readers
        config.data.threads = 2 if settings.readers else 0
        run = RunConfig.from_config(config)
        run.create_model()  # its own mistakes
        run.check_training(parallel.placement())
        loader.steps_per_epoch(len(train), config.batch_size)  # of one at least
    written = {one["name"]: one for one in made.get("systems", [])}
    written |= {
        name: _facts(one, configs[name], options) for name, one in compared.items()
    }
    made |= {
        "images": [len(train), len(test), classes],
        "data": sources.short_name(data),
        "digest": [train.digest, test.digest],
        "systems": [written[name] for name in SYSTEMS if name in written],
    }
    for name, config in configs.items():
        if name not in made["seconds"]:
            seconds = plan.measure(config, len(train), len(test))
            made["seconds"][name] = seconds
            _write(folder / PLAN, made)
            print(
                f"measured {name}: {seconds['epoch']:.1f} s an epoch, "
                f"{seconds['evaluate']:.1f} s an evaluation, "
                f"{seconds['compile']:.1f} s to compile",
                flush=True,
            )
    if made["epochs"] is None:
        left = options.hours and 3600 * options.hours - (time.monotonic() - began)
        measured = {name: made["seconds"][name] for name in compared}
        made["epochs"] = plan.epochs_that_fit(
            measured, options.epochs, len(settings.seeds), left
        )
        _write(folder / PLAN, made)
    missing = _missing(folder, options.chosen, settings.seeds)
    needed = [plan.seconds_of(made["seconds"][n], made["epochs"]) for n, _ in missing]
    total = len(compared) * len(settings.seeds)
    print(
        f"{made['epochs']} epochs a run of {options.epochs} asked for; {len(missing)} "
        f"of {total} runs are missing, {tqdm.format_interval(sum(needed))} in all",
        flush=True,
    )
    context = Context(
        cache,
        settings,
        images=Images.open(
            data,
            classes,
            options.image_size,
            resize="deit",
            crop={"crop": 1.0, "crop_mode": "squash"},
            batch_size=settings.eval_batch_size,
            workers=settings.readers,
        ),
    )
    for number, (name, seed) in enumerate(missing):
        spent = time.monotonic() - began
        if options.minutes and number and spent + needed[number] > 60 * options.minutes:
            print(f"{len(missing) - number} runs are left for the next call")
            return
        label = _label(name, seed)
        print(
            f"run {total - len(missing) + number + 1} of {total}, {label}; left for "
            f"all runs {tqdm.format_interval(sum(needed[number:]))}",
            flush=True,
        )
        config = _of_run(configs[name], compared[name], made, folder, seed)
        result = _one(config, compared[name], made, folder / label, context)
        _write(folder / f"{label}.json", result)
        print(f"{label}: {result['acc1']:.2f} % of test images", flush=True)


def _check_data(made, data, train, test, folder):
    """InputError where these are not the data that the runs were begun with."""
    counts = [len(train), len(test), train.num_classes]
    if made["images"] not in (None, counts):
        raise InputError(
            f"--data {data} has {counts} training images, test images and "
            f"classes, but the runs in {folder} were begun with {made['images']}; "
            "allowed: the same data, or another --out"
        )
    digest = [train.digest, test.digest]
    if made.get("digest", digest) != digest:  # former plans have none
        raise InputError(
            f"--data {data} has other images or labels than the runs in {folder} were "
            "begun with; allowed: the same data, or another --out"
        )


def _facts(system, config, options):
    """What the page says of a system beside its runs."""
    model = RunConfig.from_config(config).create_model()
    return {
        "name": system.name,
        "title": system.title,
        "stem": system.stem,
        "reduction": _as_json(system.reduction),
        "start": system.start,
        "gmacs": model_macs(model, options.image_size) / 1e9,
        "tokens": model.plan[-1].mlp_tokens,
    }


def _of_run(config, system, made, folder, seed):
    """The config of one run: its seed, its length, what it starts and learns from."""
    config, epochs = config.copy_and_resolve_references(), made["epochs"]
    steps = loader.steps_per_epoch(made["images"][0], config.batch_size)
    seconds = max(made["seconds"][system.name]["epoch"], 1e-3)
    config.seed, config.epochs = seed, epochs
    config.warmup_epochs = systems.RECIPE["warmup_share"] * epochs
    # One evaluation, at the end: no checkpoint is chosen on the test images.
    config.eval_every_epochs, config.log_every_steps = epochs, steps
    config.checkpoint_every_steps = steps * math.ceil(SAVE_EVERY / seconds)
    if system.start is not None:
        start = folder / _label(system.start, seed)
        config.init.weights = config.teacher.weights = str(start)
        config.init.fresh = ("reducer",)
    return config


def _one(config, system, made, workdir, context):
    """Train and evaluate one run; its JSON."""
    train_and_evaluate(config, workdir)
    jax.clear_caches()  # its programs would stay, and no other run uses them
    weights = read(workdir, checkpoint="latest").analyzed(config.model.dtype)
    context.programs.clear()
    result = context.evaluate(weights, weights.reduction)
    began = time.monotonic()
    measured = measures.measure(context, weights, system, config.seed)
    epochs = [line for line in read_metrics(workdir) if line["kind"] == "train"]
    images = config.log_every_steps * config.batch_size
    planned = made["seconds"][system.name]["epoch"]
    seconds = [images / e["throughput"] if e["throughput"] else planned for e in epochs]
    return {
        "system": system.name,
        "seed": config.seed,
        "settings": made["settings"],
        "epochs": made["epochs"],
        "reduction": _as_json(system.reduction),
        "loss": result["loss"],
        "images": result["images"],
        **measures.figures(result),
        **measured,
        "train_loss": [line["loss"] for line in epochs],
        "seconds": [round(each, 3) for each in seconds],
        "measuring_seconds": round(time.monotonic() - began, 1),
        "device": device.name(),
        "versions": device.versions(),
        "git": git_revision(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def finished(folder: pathlib.Path, made: dict) -> list[dict]:
    """All finished runs, by seed; InputError for one of another plan."""
    results = []
    for path in sorted(folder.glob("*_seed*.json")):
        result = read_json(path)
        _check_fields(result, ("settings", "epochs", "seed", "right"), path)
        ours = made["settings"] | {"epochs": made["epochs"]}
        _check_same(ours, result["settings"] | {"epochs": result["epochs"]}, path)
        results.append(result)
    return sorted(results, key=lambda result: result["seed"])


def _check_fields(content, names, path):
    """InputError for a file that this command did not write."""
    missing = [name for name in names if name not in content]
    if missing:
        raise InputError(
            f"{path} has no {missing[0]}, so another program wrote it; remove it, or "
            "name another --out"
        )


def _check_same(ours, theirs, path):
    """InputError for the first setting that differs."""
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"{path} was made with {name} {theirs.get(name)}, but now it is "
                f"{ours.get(name)}; allowed: the same, or another --out"
            )


def _missing(folder, names, seeds):
    """(system, seed) of the runs without a JSON, one seed after the other."""
    return [
        (name, seed)
        for seed in seeds
        for name in names
        if not (folder / f"{_label(name, seed)}.json").exists()
    ]


def _label(system, seed):
    return f"{system}_seed{seed}"


def _as_json(value):
    """Tuples as lists."""
    return json.loads(json.dumps(value))


def _write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(value, indent=1) + "\n")
