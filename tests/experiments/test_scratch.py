"""Training from scratch: the plan, runs that stop and resume, and what they leave."""

import dataclasses
import functools
import json
import types

import jax
import numpy as np
import pytest
from PIL import Image

from configs import base
from experiments import __main__ as command
from experiments.scratch import (
    contrasts,
    measures,
    plan,
    resident,
    runs,
    systems,
    train,
)
from experiments.scratch.options import SYSTEMS
from experiments.settings import TableSettings
from imagepiece_jax.data import sources, transforms
from imagepiece_jax.errors import InputError
from imagepiece_jax.training import optimizer, train_step
from imagepiece_jax.training.config import OptimConfig
from tests.command import call, sentence, start
from tests.experiments.scratch_pages import TINY, tiny_options

WORDS = [f"--{name}={value}" for name, value in TINY.items()]
SOME = (systems.DENSE, "imagepiece_conv", "dynamicvit", "random")
FLAGS = ["--seeds=0", "--dtype=float32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes, dark and light: folder:PATH."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 14), ("val", 9)):
        for label, low in (("dark", 0), ("light", 90)):
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(low, low + 160, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def images(data):
    return train.Data(data, tiny_options())


@pytest.fixture(scope="module")
def trainees():
    compared = systems.systems(tiny_options(), 2, "float32")
    return {
        each.name: train.Trainee(each, tiny_options(), 2, "float32")
        for each in compared
        if each.name in (systems.DENSE, "dynamicvit")
    }


@pytest.fixture(scope="module")
def some():
    """The command with four systems, which compile in less time than ten."""
    named = f"--systems={','.join(SOME)}"
    return functools.partial(call, command.main, "scratch", *WORDS, *FLAGS, named)


@pytest.fixture(scope="module")
def done(some, data, tmp_path_factory):
    """The folder of a finished command."""
    out = tmp_path_factory.mktemp("done")
    ended = some("--data", data, "--out", out)
    assert ended.status == 0, ended
    return out


# Data


def test_resident_images_are_those_of_the_source(data):
    source = sources.open_source(data, "train")
    held = resident.read(source, transforms.CanvasTransform(20), threads=2)
    assert held.image.shape == (28, 20, 20, 3) and len(held) == 28
    for index in (0, 13, 27):
        image, label = source.read(index)
        assert held.label[index] == label
        assert held.extent[index].tolist() == [16, 16]
        np.testing.assert_array_equal(held.image[index, :16, :16], image)
        assert not held.image[index, 16:].any() and not held.image[index, :, 16:].any()
    again = resident.as_source(held, source)
    assert again.read(3)[1] == held.label[3] and again.name(3) == source.name(3)


def test_a_damaged_image_is_named(tmp_path):
    for split in sources.SPLITS:
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            (tmp_path / split / label / "1.png").write_bytes(b"no image")
    source = sources.open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(InputError, match=r"1\.png cannot be read .* or remove it$"):
        resident.read(source, transforms.CanvasTransform(16), threads=2)


def test_an_epoch_has_each_image_at_most_once(images):
    epochs = [images.epoch(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for index in epochs:
        assert index.shape == (3, len(jax.local_devices()), 1, 1, 8 // index.shape[1])
        assert len(set(index.ravel())) == 24 and index.max() < 28
    assert len({index.tobytes() for index in epochs}) == 4


# Systems


@pytest.mark.parametrize(
    "size",
    [
        {"image_size": 64, "width": 128, "depth": 6, "keep_rate": 0.8},
        {"image_size": 64, "width": 128, "depth": 6, "keep_rate": 0.5},
        {"image_size": 128, "width": 192, "depth": 12},
    ],
)
def test_costs_are_equal(size):
    options = systems.Options(**size)
    compared = systems.systems(options, 10, "float32")
    cost = {s.name: systems.gmacs(s, options, 10, "float32") for s in compared}
    for name in ("evit", "tome", "dynamicvit", "random"):
        assert abs(cost[name] / cost["imagepiece_conv"] - 1) < systems.NEAR, name
    assert cost["imagepiece_conv"] == cost["dropping_conv"] < 0.8 * cost[systems.DENSE]
    assert cost["imagepiece_patch"] == cost["dropping_patch"] < cost["imagepiece_conv"]
    assert tuple(s.name for s in compared) == SYSTEMS
    assert [s.name for s in compared][0] == systems.DENSE
    assert {s.name for s in compared if s.start} == {"dynamicvit"}


def declared_options(**fields):
    """The size of docs/tables/retokenization."""
    return systems.Options(
        image_size=64, patch=8, width=96, depth=12, heads=3, keep_rate=0.8, **fields
    )


def test_the_declared_size_has_three_cycles_and_half_of_the_macs():
    options = declared_options(systems=",".join(contrasts.SYSTEMS))
    compared = {s.name: s for s in systems.systems(options, 10, "float32")}
    assert compared.keys() == set(contrasts.SYSTEMS)
    plans = {
        name: [
            (layer.attn_tokens, layer.mlp_tokens)
            for layer in systems.create(each, options, 10, "float32").plan
        ]
        for name, each in compared.items()
    }
    ours = plans.pop("imagepiece_conv")
    assert [before - after for before, after in ours] == [
        *(6, 5, 10, 4, 4, 7, 3, 3, 4, 0, 0, 0),
    ]
    assert (ours[0][0], ours[-1][1]) == (65, 19)
    for name, theirs in plans.items():
        assert theirs == ([(65, 65)] * 12 if name.startswith("dense") else ours)
    for stem in ("conv", "patch"):
        dense, piece = (
            systems.gmacs(compared[f"{name}_{stem}"], options, 10, "float32")
            for name in ("dense", "imagepiece")
        )
        assert round(100 * piece / dense) == {"conv": 53, "patch": 51}[stem]


def test_systems_of_a_seed_share_first_weights():
    """All but the stem, of which patch and conv have other parameters."""
    options = tiny_options(systems=",".join(contrasts.SYSTEMS))
    first = {
        each.name: jax.device_get(
            train.Trainee(each, options, 2, "float32").initial(7).params
        )
        for each in systems.systems(options, 2, "float32")
    }
    for stem in ("conv", "patch"):
        dense = first[f"dense_{stem}"]
        for name in ("imagepiece", "dropping"):
            jax.tree.map(np.testing.assert_array_equal, first[f"{name}_{stem}"], dense)
    shared = [
        {name: value for name, value in first[f"dense_{stem}"].items()}
        for stem in ("conv", "patch")
    ]
    for params in shared:
        del params["patch_embed"]
    assert len(shared[0]) > 5
    jax.tree.map(np.testing.assert_array_equal, *shared)


def test_systems_of_a_seed_see_the_same_images(images, monkeypatch):
    """Order and crops: pixels and labels of every step, after augmentation."""
    options = tiny_options(systems=",".join(contrasts.SYSTEMS))
    seen, whole = {}, train_step._prepare

    def prepare(part, positions, step, *rest):
        image, targets = whole(part, positions, step, *rest)
        jax.debug.callback(
            lambda *x: seen[name].append([np.asarray(a) for a in x]),
            *(step, positions, image, targets),
            ordered=False,
        )
        return image, targets

    monkeypatch.setattr(train_step, "_prepare", prepare)
    for each in systems.systems(options, 2, "float32"):
        name = each.name
        seen[name] = []
        train.Run(train.Trainee(each, options, 2, "float32"), images, 4, 1).train()
        jax.effects_barrier()
        seen[name].sort(key=lambda found: (int(found[0]), int(found[1][0])))
    ours = seen.pop("dense_conv")
    assert len(ours) == 3 * len(jax.local_devices()) and len(seen) == 5
    for theirs in seen.values():
        jax.tree.map(np.testing.assert_array_equal, theirs, ours)


def test_the_rate_is_the_schedule_of_the_package():
    options = systems.Options(peak_lr=3e-3)
    (dense, *_) = systems.systems(options, 10, "float32")
    rate, _ = systems.adamw(dense, options, 70)
    steps = np.arange(75)
    optim = dataclasses.replace(
        OptimConfig.read(base.get_config()), lr=1.5e-3, warmup_epochs=1, epochs=10
    )
    expected = optimizer.learning_rate(steps, optim, 7)
    np.testing.assert_allclose(rate(steps), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "field, text",
    [
        ({"depth": 3}, "--depth is 3; allowed are whole numbers from 4"),
        ({"epochs": 0}, "--epochs is 0; allowed are whole numbers from 1"),
        ({"keep_rate": 1.5}, "--keep_rate is 1.5; allowed are numbers above 0"),
        ({"canvas": 32}, "--canvas is 32; allowed are --image_size, 64, or more"),
        ({"systems": "tomme"}, "--systems is 'tomme'; did you mean tome"),
        ({"systems": "dynamicvit"}, "start from those of dense_conv; allowed is both"),
    ],
)
def test_options_are_checked(field, text):
    with pytest.raises(InputError, match=text):
        systems.Options(**field)


# Runs


class Stop(Exception):
    pass


def test_a_stopped_run_resumes_to_the_same_bits(images, trainees, tmp_path):
    trainee = trainees[systems.DENSE]
    state, meta = train.Run(trainee, images, 3, epochs=3).train()

    def stop(epoch, loss, seconds):
        if epoch == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SAVE_EVERY", 0.0)
        with pytest.raises(Stop):
            train.Run(trainee, images, 3, 3, tmp_path, told=stop).train()
    told = []
    run = train.Run(trainee, images, 3, 3, tmp_path, told=lambda *x: told.append(x))
    again, resumed = run.train()
    assert [epoch for epoch, *_ in told] == [3]
    assert resumed["losses"] == meta["losses"] and len(meta["losses"]) == 3
    jax.tree.map(np.testing.assert_array_equal, again, state)
    scores = [
        trainee.evaluate(train.variables(s), 3, images).each for s in (state, again)
    ]
    np.testing.assert_array_equal(scores[0]["loss"], scores[1]["loss"])


def test_an_epoch_in_one_call_is_the_same(images, trainees, monkeypatch):
    trainee = trainees[systems.DENSE]
    _, meta = train.Run(trainee, images, 3, epochs=2).train()
    indices = images.epoch(3, 1)
    monkeypatch.setattr(images, "together", images.steps)
    np.testing.assert_array_equal(images.epoch(3, 1)[0], indices.swapaxes(0, 2)[0])
    _, together = train.Run(trainee, images, 3, epochs=2).train()
    np.testing.assert_allclose(together["losses"], meta["losses"], rtol=1e-4)
    seconds, steps, _ = train.Run(trainee, images, 3, epochs=2).time_steps(9.0)
    assert steps == images.steps and seconds > 0


def test_seeds_and_lengths_share_a_program(images, trainees):
    trainee, found = trainees[systems.DENSE], []
    train.Run(trainee, images, 0, 1).train()
    programs = len(trainee.steps._compiled)
    for seed, epochs in ((0, 1), (1, 1), (0, 2)):
        _, meta = train.Run(trainee, images, seed, epochs).train()
        found.append(meta["losses"][0])
    assert len(trainee.steps._compiled) == programs
    # Other seeds draw otherwise, and the warm-up of a longer run is slower.
    assert len(set(found)) == 3


def test_a_student_starts_from_its_teacher(images, trainees):
    dense = trainees[systems.DENSE].initial(5)
    given = jax.device_get(train.variables(dense))
    state = trainees["dynamicvit"].initial(0, given)
    for name, value in given["params"].items():
        jax.tree.map(np.testing.assert_array_equal, state.params[name], value)
    fresh = set(state.params) - set(given["params"])
    assert fresh and all(name.startswith("reducer") for name in fresh)
    assert jax.tree.structure(state.batch_stats) == jax.tree.structure(
        given["batch_stats"]
    )


def test_the_command_leaves_a_json_for_each_run(done):
    folder = done / "scratch"
    made = json.loads((folder / "plan.json").read_text())
    assert set(made["seconds"]) == set(SOME) and made["epochs"] == 2
    for name in SOME:
        result = json.loads((folder / f"{name}_seed0.json").read_text())
        assert len(result["train_loss"]) == 2 and result["images"] == 18
        reduces = name == "imagepiece_conv"
        assert list(result["harsher"]) == ["0.6", "0.4", "0.3"] * reduces
        assert list(result["masked"]) == ["1", "2", "4"]  # of 16 patches
        for found in (result, *result["harsher"].values(), *result["masked"].values()):
            right = np.frombuffer(bytes.fromhex(found["right"]), np.uint8)
            right = np.unpackbits(right)[:18]
            assert found["acc1"] == pytest.approx(100 * right.mean())
        kinds = ["reassess", "similarity", "lcb-similarity"]
        assert list(result["merges"]) == kinds * reduces
        assert (folder / f"{name}_seed0").is_dir()  # the last checkpoint
    assert "| DynamicViT |" in (done / "scratch.md").read_text()


def test_a_json_holds_the_measures_of_the_tables(done):
    result = json.loads((done / "scratch" / "imagepiece_conv_seed0.json").read_text())
    found = result["merges"]
    assert set(found["reassess"]) == {"1", "2"}
    assert found["reassess"]["2"]["rule"] == "(b) kept"
    first, low, high = found["similarity"]["lowest first"]
    assert -1 <= low <= first <= high <= 1
    assert found["lcb-similarity"]["pairs"] == found["similarity"]["all first"]
    assert found["lcb-similarity"]["distance"][0] >= 1


def test_a_json_is_compact_and_knows_no_path(done, data):
    for path in (done / "scratch").glob("*.json"):
        text = path.read_text()
        assert len(text) < 30_000 and str(done) not in text
        assert data.removeprefix("folder:") not in text


def test_masks_cover_the_paper_s_share_of_patches():
    assert measures.mask_counts(14) == (7, 10, 15, 20, 25, 50)
    assert measures.mask_counts(8) == (2, 3, 5, 7, 8, 16)


def test_what_is_finished_is_only_read(some, done, tmp_path):
    page = tmp_path / "page.md"
    ended = some("--data=folder:/nowhere", "--out", done, "--page", page)
    assert ended.status == 0, ended
    assert page.read_text() == (done / "scratch.md").read_text() == ended.out[:-1]


def test_other_settings_are_refused(some, data, done):
    ended = some("--data", data, "--out", done, "--width=32")
    text = sentence(ended)
    assert "plan.json was made with width 16, but now it is 32; allowed is" in text


def test_other_data_are_refused(some, data, done, tmp_path):
    result = done / "scratch" / "dynamicvit_seed0.json"
    kept = result.rename(tmp_path / "kept.json")
    made = json.loads((done / "scratch" / "plan.json").read_text())
    path = tmp_path / "scratch" / "plan.json"
    path.parent.mkdir()
    path.write_text(json.dumps(made | {"images": [29, 18, 2]}))
    text = sentence(some("--data", data, "--out", tmp_path))
    assert "has [28, 18, 2] training images, test images and classes" in text
    path.write_text(json.dumps(made | {"digest": ["0" * 16, made["digest"][1]]}))
    text = sentence(some("--data", data, "--out", tmp_path))
    kept.rename(result)
    assert f"{tmp_path}/scratch were begun with; allowed are the same data" in text


def test_a_result_of_another_plan_is_refused(some, data, done):
    path = done / "scratch" / "dynamicvit_seed7.json"
    result = json.loads((done / "scratch" / "dynamicvit_seed0.json").read_text())
    path.write_text(json.dumps(result | {"epochs": 9}))
    text = sentence(some("--data", data, "--out", done))
    path.unlink()
    assert "dynamicvit_seed7.json was made with epochs 9, but now it is 2" in text


def test_hours_change_until_the_epochs_are_planned(tmp_path):
    path, given = tmp_path / "plan.json", tiny_options(hours=1.0)
    made = runs._plan(tmp_path, tiny_options(hours=0.1), "float32")
    path.write_text(json.dumps(made))
    assert runs._plan(tmp_path, given, "float32")["settings"]["hours"] == 1.0
    path.write_text(json.dumps(made | {"epochs": 2}))
    with pytest.raises(InputError, match="made with hours 0.1, but now it is 1.0"):
        runs._plan(tmp_path, given, "float32")


@pytest.mark.parametrize(
    "words, text",
    [
        (["--page=no/page.md"], "--page no/page.md cannot be written"),
        (["--seeds=4294967296"], "--seeds is '4294967296'; allowed are"),
        (["--train_batch_size=29"], "--train_batch_size is 29, but"),
        (["--patch=5"], "--patch"),
    ],
)
def test_mistakes_are_reported_at_once(some, data, tmp_path, words, text):
    assert text in sentence(some("--data", data, "--out", tmp_path, *words))
    assert not list(tmp_path.glob("scratch/*.json"))


def test_files_of_others_are_refused(some, data, done, tmp_path):
    (tmp_path / "scratch").mkdir()
    plan = tmp_path / "scratch" / "plan.json"
    plan.write_text("{}")
    text = sentence(some("--data", data, "--out", tmp_path))
    assert "plan.json has no settings, so another program wrote it" in text
    plan.write_text((done / "scratch" / "plan.json").read_text())
    (tmp_path / "scratch" / "tome_seed3.json").write_text("{}")
    text = sentence(some("--data", data, "--out", tmp_path))
    assert "tome_seed3.json has no settings, so another program wrote it" in text


def test_a_start_without_weights_is_named(tmp_path):
    with pytest.raises(InputError, match="has no checkpoint, which another run starts"):
        train.variables_in(tmp_path / "dense_conv_seed0")


# The plan

SECONDS = {
    "a": {"compile": 9.0, "epoch": 2.0, "evaluate": 1.0},
    "b": {"compile": 9.0, "epoch": 3.0, "evaluate": 4.0},
}


def test_epochs_are_cut_until_all_runs_fit():
    # Two seeds: 10 s of evaluations, 10 s an epoch.
    assert plan.epochs_that_fit(SECONDS, 50, 2, 100 / (1 - plan.RESERVE)) == 9
    assert plan.epochs_that_fit(SECONDS, 5, 2, 1000.0) == 5
    assert plan.epochs_that_fit(SECONDS, 50, 2, None) == 50
    with pytest.raises(InputError, match="allowed are more hours, or fewer seeds"):
        plan.epochs_that_fit(SECONDS, 50, 2, 15.0)


def test_progress_says_what_is_left(capsys):
    made = {"epochs": 4, "seconds": {k: dict(v) for k, v in SECONDS.items()}}
    progress = plan.Progress(made, [("a", 0), ("b", 0), ("b", 1)], 1, total=6)
    progress(2, 1.5, 99.0)  # which has compiled
    capsys.readouterr()
    progress.last = 0.0
    progress(3, 1.25, 10.0)
    # One epoch and an evaluation, then a run of four epochs and an evaluation.
    assert capsys.readouterr().err == (
        "run 5 of 6, b seed 0: epoch 3 of 4, loss 1.250, 10.0 s; left 00:14, "
        "all runs 00:30\n"
    )


def test_a_call_ends_when_its_minutes_are_spent(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(train, "Data", lambda *_: _NoImages())
    monkeypatch.setattr(runs, "_one", lambda *args: {"acc1": 50.0})
    monkeypatch.setattr(runs.planning, "measure", lambda *_: SECONDS["b"])
    monkeypatch.setattr(train, "Trainee", lambda *_: None)
    monkeypatch.setattr(measures, "Measures", lambda *_: None)
    options = tiny_options(minutes=1e-6)
    made = runs._plan(tmp_path, options, "float32")
    runs._train(options, "digits", [0, 1], made, tmp_path, 0.0)
    assert len([*tmp_path.glob("*_seed*.json")]) == 1  # one at least
    assert "19 runs are left for the next call" in capsys.readouterr().out
    older = json.loads((tmp_path / "plan.json").read_text())
    del older["digest"]  # as a former version wrote it: it takes that of its data
    runs._train(options, "digits", [0, 1], older, tmp_path, 0.0)
    assert older["digest"] == _NoImages.digest


class _NoImages(types.SimpleNamespace):
    train_images, test_images, num_classes = 28, 18, 2
    digest = ["01", "23"]


# Without packages that a GPU machine lacks

BARE = """
import sys
for name in ("ml_collections", "grain", "tensorflow_datasets", "simplejpeg",
             "tensorboardX", "array_record", "sklearn", "torch"):
    sys.modules[name] = None
from experiments.settings import TableSettings
from experiments import __main__ as command
from experiments.scratch import page
page.text = lambda *args: ""  # which compares several
cli.run(command.main)
"""


@pytest.mark.slow
def test_it_runs_without_packages_of_other_paths(data, tmp_path):
    words = [
        "scratch",
        *WORDS,
        *FLAGS,
        "--systems=dense_conv",
        "--data",
        data,
        "--out",
        tmp_path,
    ]
    ended = start("-c", BARE, *words)
    assert ended.status == 0, ended
    assert (tmp_path / "scratch" / "dense_conv_seed0.json").exists()


def test_flags_are_the_fields():
    assert command.SCRATCH() == systems.Options()
    assert command.SETTINGS() == TableSettings()
