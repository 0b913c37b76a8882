"""The runs of the comparison, one after the other; each leaves one JSON.

OUT/scratch/plan.json            settings, seconds of each system, epochs
OUT/scratch/SYSTEM_seedN.json    a finished run
OUT/scratch/SYSTEM_seedN/        checkpoints, of a finished run the last one
OUT/scratch.md                   the page, written anew by each call
"""

import contextlib
import dataclasses
import json
import pathlib
import time

from tqdm import tqdm

from experiments.scratch import measures, page, systems, train
from experiments.scratch import plan as planning
from experiments.scratch.options import SYSTEMS, Options
from experiments.settings import TableSettings
from imagepiece_jax.benchmark import device
from imagepiece_jax.common import xla_options
from imagepiece_jax.common.files import (
    check_writable,
    git_revision,
    read_json,
    replace_file,
)
from imagepiece_jax.data import sources
from imagepiece_jax.errors import InputError
from imagepiece_jax.training.preemption import StopRequest
from imagepiece_jax.training.run_dir import RunLock

PLAN = "plan.json"
FREE = ("minutes", "page", "systems")  # options that may change between calls
LENGTH = ("epochs", "hours")  # that may change until the epochs are planned
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
    out, seeds = pathlib.Path(settings.out), settings.seeds
    folder = out / "scratch"
    if options.page:
        check_writable("--page", options.page)
    plan = _plan(folder, options, settings.dtype or xla_options.fast_dtype())
    # A signal ends it: what is lost was trained since the last save.
    with (
        _flags_named(),
        RunLock(folder),
        StopRequest() as stop,
        stop.ending_at_once(),
    ):
        finished(folder, plan)  # those of another plan, before anything is trained
        if plan["epochs"] is None or _missing(folder, options.chosen, seeds):
            _train(options, data, seeds, plan, folder, began)
        text = page.text(finished(folder, plan), plan)
    replace_file(options.page or out / "scratch.md", text)
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


def _plan(folder, options, dtype):
    """The plan in `folder`, or a new one; InputError where it has other settings."""
    given = {k: v for k, v in dataclasses.asdict(options).items() if k not in FREE}
    given = _plain(given | systems.RECIPE | {"dtype": dtype})
    path = folder / PLAN
    if not path.exists():
        return {"settings": given, "images": None, "seconds": {}, "epochs": None}
    plan = read_json(path)
    _check_fields(plan, ("settings", "images", "seconds", "epochs"), path)
    if plan["epochs"] is None:
        plan["settings"] |= {name: given[name] for name in LENGTH}
    _check_same(given, plan["settings"], path)
    return plan


def _train(options, data, seeds, plan, folder, began):
    """Complete the plan, and train what is missing."""
    dtype = plan["settings"]["dtype"]
    images = train.Data(data, options)
    facts = {
        "images": [images.train_images, images.test_images, images.num_classes],
        "data": sources.short_name(data),
    }
    if plan["images"] not in (None, facts["images"]):
        raise InputError(
            f"--data {data} has {facts['images']} training images, test images and "
            f"classes, but the runs in {folder} were begun with {plan['images']}; "
            "allowed are the same data, or another --out"
        )
    facts["digest"] = images.digest
    if plan.get("digest", images.digest) != images.digest:  # former plans have none
        raise InputError(
            f"--data {data} has other images or labels than the runs in {folder} were "
            "begun with; allowed are the same data, or another --out"
        )
    compared = systems.systems(options, images.num_classes, dtype)
    known = {one["name"]: one for one in plan.get("systems", [])}
    known |= {one.name: _facts(one, options, images, dtype) for one in compared}
    facts["systems"] = [known[name] for name in SYSTEMS if name in known]
    plan |= facts
    trainees = {
        one.name: train.Trainee(one, options, images.num_classes, dtype)
        for one in compared
    }
    for name, trainee in trainees.items():
        if name not in plan["seconds"]:
            found = planning.measure(trainee, trainees.get(systems.DENSE), images)
            plan["seconds"][name] = found
            _write(folder / PLAN, plan)
            print(
                f"measured {name}: {found['epoch']:.1f} s an epoch, "
                f"{found['evaluate']:.1f} s an evaluation, {found['compile']:.1f} s to "
                "compile",
                flush=True,
            )
    if plan["epochs"] is None:
        seconds = options.hours and 3600 * options.hours - (time.monotonic() - began)
        measured = {name: plan["seconds"][name] for name in trainees}
        plan["epochs"] = planning.epochs_that_fit(
            measured, options.epochs, len(seeds), seconds
        )
        _write(folder / PLAN, plan)
    missing = _missing(folder, options.chosen, seeds)
    measured = {name: measures.Measures(one) for name, one in trainees.items()}
    total = len(compared) * len(seeds)
    needed = [planning.seconds_of(plan, name) for name, _ in missing]
    print(
        f"{plan['epochs']} epochs a run of {options.epochs} asked for; {len(missing)} "
        f"of {total} runs are missing, {tqdm.format_interval(sum(needed))} in all",
        flush=True,
    )
    for number, (name, seed) in enumerate(missing):
        spent = time.monotonic() - began
        if options.minutes and number and spent + needed[number] > 60 * options.minutes:
            print(f"{len(missing) - number} runs are left for the next call")
            return
        told = planning.Progress(plan, missing, number, total)
        result = _one(trainees[name], measured[name], images, seed, plan, folder, told)
        _write(folder / f"{_label(name, seed)}.json", result)
        print(
            f"{_label(name, seed)}: {result['acc1']:.2f} % of test images", flush=True
        )


def _facts(system, options, images, dtype):
    """What the page says of a system beside its runs."""
    classes = images.num_classes
    model = systems.create(system, options, classes, dtype)
    return {
        "name": system.name,
        "title": system.title,
        "stem": system.stem,
        "reduction": _plain(system.reduction),
        "start": system.start,
        "gmacs": systems.gmacs(system, options, classes, dtype),
        "tokens": model.plan[-1].mlp_tokens,
    }


def _one(trainee, measured, images, seed, plan, folder, told):
    """Train and evaluate one run; its JSON."""
    name, start = trainee.system.name, trainee.system.start
    if start is not None:
        start = train.variables_in(folder / _label(start, seed))
    run = train.Run(
        trainee,
        images,
        seed,
        plan["epochs"],
        folder / _label(name, seed),
        start,
        told=told,
    )
    state, meta = run.train()
    variables = train.variables(state)
    found = trainee.evaluate(variables, seed, images)
    began = time.monotonic()
    more = measured.of(variables, seed, images)
    return {
        "system": name,
        "seed": seed,
        "settings": plan["settings"],
        "epochs": plan["epochs"],
        "reduction": _plain(trainee.system.reduction),
        "acc1": found.acc1,
        "loss": found.loss,
        "images": found.images,
        "right": measures.packed(found.each["right"]),
        **more,
        "train_loss": meta["losses"],
        "seconds": meta["seconds"],
        "measuring_seconds": round(time.monotonic() - began, 1),
        "device": device.name(),
        "versions": device.versions(),
        "git": git_revision(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def finished(folder: pathlib.Path, plan: dict) -> list[dict]:
    """All finished runs, by seed; InputError for one of another plan."""
    found = []
    for path in sorted(folder.glob("*_seed*.json")):
        result = read_json(path)
        _check_fields(result, ("settings", "epochs", "seed", "right"), path)
        ours = plan["settings"] | {"epochs": plan["epochs"]}
        _check_same(ours, result["settings"] | {"epochs": result["epochs"]}, path)
        found.append(result)
    return sorted(found, key=lambda result: result["seed"])


def _check_fields(found, names, path):
    """InputError for a file that this command did not write."""
    missing = [name for name in names if name not in found]
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
                f"{ours.get(name)}; allowed is the same, or another --out"
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


def _plain(value):
    """As JSON has it: tuples are lists."""
    return json.loads(json.dumps(value))


def _write(path, value):
    replace_file(path, json.dumps(value, indent=1) + "\n")
