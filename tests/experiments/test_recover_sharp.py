"""The study of sharp images: a tiny run, its rules, and committed figures by hand."""

import io
import re

import numpy as np
import pytest
import scipy.stats
from PIL import Image

import imagepiece_jax
from experiments import damage, recover_sharp
from experiments.recover import Student
from experiments.recover_sharp import CHOSEN, Cell
from imagepiece_jax.data.train_crop import TrainTransform
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.cache import decode_bits
from tests import markdown
from tests.experiments import lines
from tests.experiments.test_recover_elsewhere import Labeled
from tests.models import tiny

pytestmark = pytest.mark.usefixtures(
    "evaluations_compiled_once", "recoveries_compiled_once"
)

BATCH = 8
SIDE = tiny.SIDE
FOLDER = markdown.ROOT / recover_sharp.FOLDER
RUNS = lines.committed(recover_sharp.FOLDER)
DROPPING = {"name": "evit", "keep_rate": 0.4, "blocks": (0,), "fuse_token": False}
STUDENTS = {
    "dense": Student("dense"),
    "three-0.6": Student(".6", {"name": "tome", "r": 3}),
    "three-0.5": Student(".5", {"name": "tome", "r": 5}),
    "spread-0.4": Student(".4", DROPPING),
    "small-176": Student("small", image_size=16),
}


def noise(count, seed):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


# Damage


def crop(share=0.5):
    return TrainTransform(SIDE, "random_resized", (0.4, 1.0), shift=0, flip=True)


def generators(count):
    return [np.random.default_rng(seed) for seed in range(count)]


def test_half_of_the_crops_are_damaged_and_the_others_are_as_they_were():
    image = noise(1, 0)[0]
    clean = [crop()(image, rng) for rng in generators(400)]
    damaged = [damage.Damaged(crop())(image, rng) for rng in generators(400)]
    pairs = zip(clean, damaged, strict=True)
    changed = [not np.array_equal(one, other) for one, other in pairs]
    # Of 400 draws of one half, 200 by three standard deviations of 10.
    assert 170 < sum(changed) < 230
    both = recover_sharp.Pair(crop())
    for rng, one, other in zip(generators(400), clean, damaged, strict=True):
        np.testing.assert_array_equal(both(image, rng), np.concatenate([one, other]))


def test_damage_is_as_strong_as_declared():
    """Each kind by what only it does, on an image that shows it."""
    draw = np.random.default_rng(0)
    gray = np.full((224, 224, 3), 128, np.uint8)
    stds = [damage.roughen(gray, draw).std() / 255 for _ in range(60)]
    assert 0.03 * 0.9 < min(stds) < 0.06
    assert 0.17 < max(stds) < 0.2 * 1.02
    picture = draw.integers(0, 256, (224, 224, 3), np.uint8)
    apart = [np.abs(damage.shrink(picture, draw) - 127.5).mean() for _ in range(60)]
    assert max(apart) < np.abs(picture - 127.5).mean()  # noise is averaged away
    sizes = []
    for _ in range(60):
        file = io.BytesIO()
        Image.fromarray(damage.store(picture, draw)).save(file, "PNG")
        sizes.append(file.tell())
    bounds = []
    for quality in damage.QUALITIES:
        file = io.BytesIO()
        Image.fromarray(damage.compress(picture, 0, quality)).save(file, "PNG")
        bounds.append(file.tell())
    assert bounds[0] * 0.98 <= min(sizes) <= max(sizes) <= bounds[1] * 1.02


def test_each_cost_gets_a_step_before_any_gets_another():
    order = recover_sharp.drawn_order("abc", 300, 1)
    rounds = [tuple(order[place : place + 3]) for place in range(0, 300, 3)]
    assert {tuple(sorted(each)) for each in rounds} == {("a", "b", "c")}
    assert len(set(rounds)) == 6
    assert order != recover_sharp.drawn_order("abc", 300, 2)


# A tiny study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    vit = tiny.pretrained(depth=2)
    imagepiece_jax.save(folder / "weights", vit)
    photographs = Labeled(noise(96, 0))
    return recover_sharp.Study(
        weights=str(folder / "weights"),
        photographs=photographs,
        learned=Labeled(noise(32, 1)),
        sharp=Labeled(noise(20, 2)),
        small=Labeled(noise(20, 3)),
        out=folder / "runs",
        scratch=folder / "scratch",
        students=STUDENTS,
        steps=8,
        batch_size=BATCH,
        looked_at=8,
        small_images=16,
    )


def trained(study, cell):
    """The numbers that a run has learned."""
    with np.load(study.scratch / "trained" / f"{cell.name}.npz") as file:
        return dict(file)


def test_runs_with_the_same_crops_ask_the_teacher_once(study):
    """A run whose answers are there learns the same numbers, to the bit."""
    cell = Cell("three-0.5", "plain")
    found = study.run(cell)
    numbers = trained(study, cell)
    answers = sorted((study.scratch / "answers" / "plain.A1").iterdir())
    written = [path.stat().st_mtime_ns for path in answers]
    assert len(answers) == 8
    again = study.run(cell)
    repeated = trained(study, cell)
    for name, value in numbers.items():
        np.testing.assert_array_equal(repeated[name], value)
    assert again["judged"] == found["judged"]
    clean = study.run(Cell("three-0.5", "clean"))  # whose clean crops are the same
    folders = {path.name for path in (study.scratch / "answers").iterdir()}
    assert folders == {"plain.A1"}
    assert [path.stat().st_mtime_ns for path in answers] == written
    assert clean["curve"] != found["curve"]
    judged = found["judged"]["three-0.5"].items()
    counts = {kind: each["images"] for kind, each in judged}
    assert counts == {"photographs": 48, "blur": 48, "sharp": 12, "small": 16}


def test_one_set_of_numbers_serves_three_costs(study, monkeypatch):
    monkeypatch.setattr(recover_sharp.Study, "way", lambda self, cell: "plain")
    found = study.run(Cell("shared", CHOSEN))
    assert found["steps"] == 24
    assert [*found["judged"]] == ["three-0.6", "three-0.5", "spread-0.4"]
    assert {step for step, _ in found["curve"]} == {3, 6, 9, 12, 15, 18, 21, 24}
    small = study.run(Cell("small-176", CHOSEN, "I"))
    assert small["images_learned"] == 16
    assert small["gmacs"]["small-176"] < found["gmacs"]["three-0.6"]


def test_unseen_images_are_those_that_no_first_look_judged(study):
    order = np.random.default_rng(1).permutation(20)
    assert {*study.unseen().indices} == {*order[8:]}


def test_the_chosen_recipe_waits_for_what_chooses(study):
    with pytest.raises(InputError, match="three-0.5.damaged.B1"):
        study.way(Cell("three-0.6", CHOSEN))


# The committed runs


def committed(name, kind, student=None):
    """(KL, right, same) of a committed run on some images."""
    run = RUNS[name]
    found = run["judged"][student or run["cell"]["student"]][kind]
    bits = [decode_bits(found[field], found["images"]) for field in ("right", "same")]
    return np.array(found["kl"]), *bits


DECIDING = ("three-0.5.plain.A1", "three-0.5.damaged.A1", "three-0.5.damaged.B1")


def plain_b(kind):
    if kind == "photographs":
        run = lines.committed("docs/tables/recover")["three-0.5.chosen.B1"]
        return np.array(run["judged"]["kl"])
    runs = lines.committed("docs/tables/recover_elsewhere")
    return np.array(runs["damage.three-0.5.recovered.B"]["blur 2"]["kl"])


def changes(kind):
    """KL, damaged minus plain, of all photographs."""
    odd = committed(DECIDING[1], kind)[0] - committed(DECIDING[0], kind)[0]
    return np.concatenate([odd, committed(DECIDING[2], kind)[0] - plain_b(kind)])


def test_the_recipe_is_chosen_as_declared():
    """R4 and R5 by SciPy, and Holm's rule by hand."""
    small = committed(DECIDING[1], "small")[0] - committed(DECIDING[0], "small")[0]
    blur = changes("blur")
    ps = [scipy.stats.ttest_1samp(each, 0.0).pvalue for each in (blur, small)]
    corrected = [2 * min(ps), max(2 * min(ps), max(ps))]
    r4 = blur.mean() < 0 and small.mean() < 0 and max(corrected) < 0.05
    photographs = changes("photographs")
    interval = scipy.stats.ttest_1samp(photographs, 0.0).confidence_interval()
    expected = "damaged" if r4 and interval.high < 0.005 else "plain"
    found = recover_sharp.Results(FOLDER)
    assert recover_sharp.chosen_way(found) == expected
    r5 = recover_sharp.not_worse(found)
    np.testing.assert_allclose(r5[1:], interval, rtol=1e-6)
    text = (FOLDER / "README.md").read_text("utf-8")
    for each in (blur, small):
        assert f"{each.mean():+.3f} [" in text
    assert f"{photographs.mean():+.4f} [" in text


def right_of(student, learned):
    """Right answers of a recovered model on imagenette, as means over its seeds."""
    if not student.startswith("three"):
        names = [f"{student}.chosen.{learned}1"]
    else:
        names = [f"{student}.chosen.{learned}{seed}" for seed in (1, 2, 3)]
    if (student, learned) == ("three-0.5", "A"):
        names[0] = DECIDING[0]
    return np.mean([committed(name, "sharp")[1] for name in names], axis=0)


def right_off(student):
    """Right answers of a model off the shelf on imagenette, 0.0 or 1.0."""
    return committed(f"{student}.off", "sharp")[1].astype(float)


def points(ours, theirs):
    """(mean, low, high) of a paired difference, by hand."""
    change = 100 * (ours - theirs)
    half = 1.96 * change.std(ddof=1) / np.sqrt(len(change))
    return change.mean(), change.mean() - half, change.mean() + half


def becomes(changes):
    """What becomes of a sentence that changes lie below zero."""
    below = sum(high < 0 for *_, high in changes)
    return ["withdrawn", "weakened", "kept"][below]


def test_what_becomes_of_the_sentence_on_harm():
    changes = []
    for student in ("three-0.5", "three-0.6"):
        changes.append(points(right_of(student, "A"), right_off(student)))
    found = recover_sharp.Results(FOLDER)
    assert recover_sharp.verdict(recover_sharp.harms(found)) == becomes(changes)
    text = (FOLDER / "README.md").read_text("utf-8")
    assert f"imagenette is {becomes(changes)}" in text


def test_what_becomes_of_the_sentence_on_smaller_images():
    changes = []
    figures = {}
    for ours, smaller in (("three-0.5", "small-176"), ("three-0.6", "small-192")):
        change = points(right_of(ours, "I"), right_of(smaller, "I"))
        changes.append(change)
        mean, low, high = change
        figures[ours] = f"{mean:.1f} [{low:+.1f}, {high:+.1f}]"
    found = recover_sharp.Results(FOLDER)
    assert recover_sharp.verdict(recover_sharp.rivals(found)) == becomes(changes)
    text = (FOLDER / "README.md").read_text("utf-8")
    assert f"wins there is {becomes(changes)}" in text
    assert not markdown.lacking(figures, "docs/comparison.md", "Recovered")


def test_readme_gives_the_figures_of_imagenette():
    figures = {}
    dense = right_off("dense")
    for name, right in (
        ("off the shelf", right_off("three-0.5")),
        ("from photographs", right_of("three-0.5", "A")),
    ):
        lost, *_ = points(dense, right)
        figures[name] = f"{lost:.1f}"
    assert not markdown.lacking(figures, "README.md")
    _, low, _ = points(dense, right_of("three-0.5", "I"))
    assert low < 0  # "none from 800 images of imagenette"


def test_sharing_is_decided_as_declared():
    own = ("three-0.6.chosen.A1", "spread-0.4.chosen.A1", "shared.chosen.A1")
    found = recover_sharp.Results(FOLDER)
    alone = f"three-0.5.{recover_sharp.chosen_way(found)}.A1"
    names = {"three-0.6": own[0], "three-0.5": alone, "spread-0.4": own[1]}
    shares = {}
    for student, name in names.items():
        shared = committed(own[2], "photographs", student)[0].mean()
        shares[student] = shared / committed(name, "photographs")[0].mean()
    assert recover_sharp.ratios(found) == pytest.approx(shares)
    assert recover_sharp.is_shared(found) == (max(shares.values()) <= 1.1)
    text = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"| {share:.3f} |" in text for share in shares.values())


def test_the_page_is_that_of_the_committed_runs():
    assert (FOLDER / "README.md").read_text("utf-8") == recover_sharp.page(FOLDER)


def test_the_cells_are_the_declared_ones():
    text = (FOLDER / "declared.md").read_text("utf-8")
    names = [cell.name for cell in recover_sharp.cells()]
    assert len(names) == len(set(names))
    for name in re.findall(r"`((?:three|shared|spread)\S+1)`", text):
        assert name in names or name in (
            "three-0.5.chosen.B1",  # of the study of recovery
        )
    recovered = [name for name in names if not name.endswith(".off")]
    assert f"{len(recovered)} recoveries" in text
    assert (recover_sharp.STEPS, recover_sharp.LOOKED_AT) == (250, 1500)
    assert recover_sharp.SMALL_IMAGES == 3000
