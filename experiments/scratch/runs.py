"""The runs of the comparison, one after the other; each leaves one JSON.

OUT/scratch/plan.json            settings, data and systems
OUT/scratch/SYSTEM_seedN.json    a finished run
OUT/scratch/SYSTEM_seedN/        the run, as train.py leaves it
OUT/scratch/points.jsonl         figures of finished runs
OUT/scratch.md                   the page, written anew by each call
"""

import contextlib
import dataclasses
import json
import pathlib
import time

import numpy as np

from experiments.context import Context
from experiments.finetune import train_run
from experiments.images import Images
from experiments.scratch import page, systems
from experiments.scratch.options import SYSTEMS, Options
from experiments.settings import Common
from imagepiece_jax.benchmark import device
from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.files import (
    check_writable,
    git_revision,
    read_json,
    replace_file,
    write_json,
)
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data import loader, registry
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.cache import ResultCache
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.training.data import check_training
from imagepiece_jax.training.logging import read_metrics

PLAN, OUT = "plan.json", "--out"
FREE = ("page", "systems")  # options that may change between calls
# Flags of this command that set fields of a config, by the field's last name.
FLAGS = {
    "batch_size": "--train_batch_size",
    "embed_dim": "--width",
    "num_heads": "--heads",
    "patch_size": "--patch",
    "image_size": "--image_size",
    "--workdir": OUT,
}


def run(options: Options, data: str, settings: Common):
    """Finish all runs, and write the page; the data are opened where one is missing."""
    folder = pathlib.Path(settings.out) / "scratch"
    if options.page:
        check_writable("--page", options.page)
    plan = read_plan(folder, options, settings.dtype or xla_options.fast_dtype())
    with _flags_named():
        finished(folder, plan)  # those of another plan, before anything is trained
        missing = _missing(folder, options.chosen, settings.seeds)
        if missing:
            cache = ResultCache(folder, settings.again, device.versions())
            with contextlib.closing(cache):
                _train(options, data, settings, plan, folder, cache, missing)
        text = page.text(finished(folder, plan), plan)
    replace_file(options.page or folder.with_suffix(".md"), text)
    print(text, flush=True)


@contextlib.contextmanager
def _flags_named():
    """Errors about a field of a config are about a flag here."""
    try:
        yield
    except InputError as error:
        error.field = FLAGS.get(error.field.rpartition(".")[2], error.field)
        raise


def read_plan(folder: pathlib.Path, options: Options, dtype: str) -> dict:
    """The plan in `folder`, or a new one; InputError where it has other settings."""
    given = {k: v for k, v in dataclasses.asdict(options).items() if k not in FREE}
    given = _as_json(given | systems.RECIPE | {"dtype": dtype})
    path = folder / PLAN
    if not path.exists():
        return {"settings": given}
    plan = read_json(path)
    _check_same(given, plan["settings"], path)
    return plan


def _train(options, data, settings, plan, folder, cache, missing):
    """Complete the plan, and train what is missing."""
    dtype = plan["settings"]["dtype"]
    train, test = (registry.open_source(data, split) for split in registry.SPLITS)
    classes = train.num_classes
    facts = {"images": [len(train), len(test), classes]}
    facts["digest"] = [train.digest, test.digest]
    begun = {name: plan.get(name, value) for name, value in facts.items()}
    _check_same(facts, begun, folder / PLAN)
    compared = {one.name: one for one in systems.systems(options, classes, dtype)}
    written, configs = {one["name"]: one for one in plan.get("systems", [])}, {}
    for name, one in compared.items():
        config = configs[name] = systems.config(one, options, classes, dtype)
        config.data.name, config.data.workers = data, settings.readers
        config.data.threads = 2 if settings.readers else 0
        run = RunConfig.from_config(config)
        written[name] = _facts(one, run)
        check_training(run, parallel.placement())
        loader.steps_per_epoch(len(train), config.batch_size)  # of one at least
    plan |= facts | {
        "data": registry.short_name(data),
        "systems": [written[name] for name in SYSTEMS if name in written],
    }
    write_json(folder / PLAN, plan)
    fields = {"batch_size": settings.eval_batch_size, "workers": settings.readers}
    fields["crop"] = {"crop": 1.0, "crop_mode": "squash"}
    images = Images.open(data, classes, options.image_size, **fields)
    context = Context(cache, settings, images=images)
    for number, (name, seed) in enumerate(missing, 1):
        label = _label(name, seed)
        print(f"run {number} of {len(missing)} missing ones, {label}", flush=True)
        config = _of_run(configs[name], compared[name], plan, folder, seed)
        result = _one(config, compared[name], plan, folder / label, context)
        write_json(folder / f"{label}.json", result)
        print(f"{label}: {result['acc1']:.2f} % of test images", flush=True)


def _facts(system, run):
    """Facts of a system, for the page."""
    model = run.create_model()
    return _as_json(dataclasses.asdict(system)) | {
        "gmacs": model_macs(model, run.image_size) / 1e9,
        "tokens": model.plan[-1].mlp_tokens,
    }


def _of_run(config, system, plan, folder, seed):
    """The config of one run: its seed, its steps, what it starts and learns from."""
    config = config.copy_and_resolve_references()
    steps = loader.steps_per_epoch(plan["images"][0], config.batch_size)
    config.seed = seed
    config.log_every_steps = config.checkpoint_every_steps = steps
    if system.start is not None:
        start = folder / _label(system.start, seed)
        config.init.weights = config.teacher.weights = str(start)
        config.init.fresh = ("reducer",)
    return config


def _one(config, system, plan, workdir, context):
    """Train and evaluate one run; its JSON."""
    weights = train_run(config, workdir)
    context.programs.clear()
    result = context.evaluate(weights, weights.reduction)
    epochs = [line for line in read_metrics(workdir) if line["kind"] == "train"]
    throughput = [line["throughput"] for line in epochs]
    images = config.log_every_steps * config.batch_size
    return {
        "system": system.name,
        "seed": config.seed,
        "settings": plan["settings"],
        "reduction": _as_json(system.reduction),
        "loss": result["loss"],
        "images": result["images"],
        "acc1": result["acc1"],
        "right": np.packbits(result.right).tobytes().hex(),
        "train_loss": [line["loss"] for line in epochs],
        "seconds": [round(images / t, 3) for t in throughput if t],
        "device": device.name(),
        "versions": device.versions(),
        "git": git_revision(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def finished(folder: pathlib.Path, plan: dict) -> list[dict]:
    """All finished runs, by seed; InputError for one of another plan."""
    results = []
    for path in sorted(folder.glob("*_seed*.json")):
        result = read_json(path)
        _check_same(plan["settings"], result["settings"], path)
        results.append(result)
    return sorted(results, key=lambda result: result["seed"])


def _check_same(ours, theirs, path):
    """InputError for the first setting that differs; former plans have more."""
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"was {theirs.get(name)}, but now it is {ours.get(name)}",
                place=path,
                field=name,
                value=ours.get(name),
                allowed=f"the same, or another {OUT}",
            )


def _missing(folder, names, seeds):
    """(system, seed) of the runs without a JSON, one seed after the other."""
    runs = [(name, seed) for seed in seeds for name in names]
    return [run for run in runs if not (folder / f"{_label(*run)}.json").exists()]


def _label(system, seed):
    return f"{system}_seed{seed}"


def _as_json(value):
    """Tuples as lists."""
    return json.loads(json.dumps(value))
