"""Adaptation by folds: nothing is tested that was trained on, and nothing twice."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy import stats

import imagepiece_jax
from configs import quickstart
from experiments import adapt
from experiments.context import OffTheShelf
from experiments.images import Images
from experiments.settings import Adapt
from imagepiece_jax.data import csv_table, registry
from imagepiece_jax.errors import InputError, Stopped
from imagepiece_jax.models.config import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.pretrained.load import read
from tests import markdown
from tests.experiments import tiny_context
from tests.models.tiny import fill

COUNT, FOLDS = 24, 3
SIZE = tiny_context.SIZE | {"depth": 1, "mlp_ratio": 2.0, "stem": "patch"}


def test_every_image_is_in_one_fold():
    parts = adapt.folds(1000, 5)
    assert [len(part) for part in parts] == [200] * 5
    assert sorted(np.concatenate(parts)) == [*range(1000)]
    again = adapt.folds(1000, 5)
    assert all((one == other).all() for one, other in zip(parts, again, strict=True))
    # Drawn, not cut: each has images from everywhere.
    assert all(350 < part.mean() < 650 for part in parts)
    assert sorted(map(len, adapt.folds(11, 3))) == [3, 4, 4]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Digits as files, with a table of them."""
    folder = tmp_path_factory.mktemp("photographs")
    source = registry.open_source("digits", "val")
    rows = ["filename,label"]
    for index in range(COUNT):
        pixels, label = source.read(index)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append(f"{index}.png,{label}")
    (folder / "set.csv").write_text("\n".join(rows))
    model = create_model(**tiny_context.FIELDS | SIZE)
    variables = fill(variable_shapes(model, 16), seed=0)
    imagepiece_jax.save(folder / "weights", Pretrained(model, variables))
    return folder


def images_of(photographs):
    name = f"csv:{photographs}/set.csv"
    return Images.open(name, 10, 16, resize="none", batch_size=12, workers=0)


def context(photographs, out, **fields):
    images = images_of(photographs)
    config = quickstart.get_config()
    config.update_from_flattened_dict({f"model.{k}": v for k, v in SIZE.items()})
    config.update_from_flattened_dict(
        {"epochs": 2, "batch_size": 8, "warmup_epochs": 0.0, "eval_batch_size": 8}
        | {"distill.kind": "soft", "distill.weight": 1.0, "lr": 0.05}
    )
    config.reduction = {"name": "evit", "keep_rate": 0.5, "blocks": (0,)}
    config.reduction.update(rate_warmup_start=0, rate_warmup_epochs=0)
    given = {"images": images, "config": config, "folds": FOLDS}
    weights = read(photographs / "weights").analyzed()
    return tiny_context.context(
        out, kind=Adapt, models=OffTheShelf(weights), **(given | fields)
    )


def test_a_table_keeps_what_is_tested_from_training(photographs, tmp_path):
    ctx = context(photographs, tmp_path)
    labels, (part, *_) = adapt._labels(ctx.images), adapt.folds(COUNT, FOLDS)
    text = adapt._table(ctx.images.source, labels, part, unlabeled=True)
    (tmp_path / "fold.csv").write_text(text)
    rows = [*csv.DictReader(text.splitlines())]
    assert [row["split"] == "val" for row in rows] == [i in part for i in range(COUNT)]
    assert all((row["label"] == "") == (row["split"] == "train") for row in rows)
    tested = csv_table.read_csv(str(tmp_path / "fold.csv"), "val", 10, labeled=False)
    assert tested.labels == [labels[i] for i in part]
    assert [file.rpartition("/")[2] for file in tested.files] == [
        f"{index}.png" for index in part
    ]
    ctx.cache.close()


@pytest.mark.parametrize(
    "fields, field, value",
    [
        ({"folds": 1}, "--folds", 1),
        ({"folds": COUNT + 1}, "--folds", COUNT + 1),
        ({"images": tiny_context.images}, "--data", "digits"),  # no files
    ],
)
def test_mistakes(photographs, tmp_path, fields, field, value):
    fields = {k: v() if callable(v) else v for k, v in fields.items()}
    ctx = context(photographs, tmp_path, **fields)
    with pytest.raises(InputError) as error:
        adapt.adapt(ctx)
    assert (error.value.field, error.value.value) == (field, value)
    ctx.cache.close()


@pytest.fixture
def folders(monkeypatch):
    """Folders of runs, each of which is stopped at once."""
    found = []

    def stopping(config, workdir):
        found.append(workdir)
        raise Stopped(15, 1)

    monkeypatch.setattr(adapt, "train_and_evaluate", stopping)
    return found


def stopped(ctx):
    with pytest.raises(Stopped):
        adapt.adapt(ctx)
    ctx.cache.close()


def test_other_images_never_resume_a_run(photographs, tmp_path, folders):
    """As many others in the same folder; then one of the same name and size."""
    for index in (0, 1):
        ctx = context(photographs, tmp_path)
        half = ctx.images.subset(np.arange(index, COUNT, 2))
        stopped(dataclasses.replace(ctx, images=half))
    assert folders[0] != folders[1]
    copy = tmp_path / "photographs"
    shutil.copytree(photographs, copy)
    for _ in range(3):
        stopped(context(copy, tmp_path / "out"))
        if len(folders) == 4:
            data = bytearray((copy / "3.png").read_bytes())
            data[-1] ^= 1  # after the pixels
            (copy / "3.png").write_bytes(data)
    assert folders[2] == folders[3] != folders[4]


@pytest.mark.slow
def test_folds_are_trained_once_and_joined(photographs, tmp_path, monkeypatch):
    """Stopped in the second fold, and given again; figures by hand."""
    train, trained = adapt.train_and_evaluate, []

    def stopping(config, workdir):
        if len(trained) == 1:
            trained.append("stopped")
            raise Stopped(15, 1)
        trained.append(workdir.name)
        return train(config, workdir)

    monkeypatch.setattr(adapt, "train_and_evaluate", stopping)
    ctx = context(photographs, tmp_path)
    with pytest.raises(Stopped):
        adapt.adapt(ctx)
    assert not (tmp_path / "adapt.md").exists()
    ctx.cache.close()
    for _ in range(2):
        ctx = context(photographs, tmp_path)
        adapt.adapt(ctx)
        ctx.cache.close()
    assert trained[0].startswith("evit_") and trained[1] == "stopped"
    names = [name.rpartition("_")[0] for name in (trained[0], *trained[2:])]
    assert names == [names[0].removesuffix("0") + str(fold) for fold in range(FOLDS)]
    points = [
        json.loads(x) for x in (tmp_path / "points.jsonl").read_text().split("\n")[:-1]
    ]
    parts, after = adapt.folds(COUNT, FOLDS), np.zeros(COUNT, bool)
    for point in points:
        if point["setting"]["kind"] == "adapt":
            right = adapt.Answers(point["result"]).right
            after[parts[point["setting"]["fold"]]] = right
    before = next(
        adapt.Answers(point["result"]).right
        for point in points
        if point["setting"]["kind"] == "accuracy"
        and point["setting"]["reduction"]["name"] == "evit"
        and point["setting"]["images"] == COUNT
    )
    page = (tmp_path / "adapt.md").read_text()
    (row,) = markdown.tables(page)[0]
    accuracy = markdown.interval(row["adapted, acc1, %"])[0]
    assert accuracy == pytest.approx(100 * after.mean(), abs=0.05)
    change = 100.0 * (after.astype(int) - before)
    by_fold = [change[part].mean() for part in parts]
    cell = row["adapted - unadapted by fold"]
    assert cell == " ".join(f"{value:+.1f}" for value in by_fold)
    interval = stats.ttest_1samp(by_fold, 0).confidence_interval()
    assert markdown.interval(row["adapted - unadapted, points"]) == pytest.approx(
        (change.mean(), interval.low, interval.high), abs=0.05
    )
    runs = [p["setting"] for p in points if p["setting"]["kind"] == "adapt"]
    assert len({setting["recipe"]["seed"] for setting in runs}) == FOLDS
    assert "evit" in page and "soft answers at temperature 3, weight 1, labels" in page
    folder = tmp_path / "adapt"
    assert not [*folder.glob("*/checkpoints")] and len([*folder.glob("*.csv")]) == 3
