"""Recovery: what moves, what is kept, and what is refused."""

import dataclasses
import itertools
import json
import signal
import sys

import chex
import jax
import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.common import statistics
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.models import recovery_record
from imagepiece_jax.models.trainable import TRAINED, trained_part, with_trained
from imagepiece_jax.recovery import recover, recovery_images, recovery_step
from tests.helpers import (
    forked_processes,
    made_up_recoveries,
    small_runs,
    stored_programs,
    tiny_vit,
)
from tests.helpers.oracles import softmax
from tests.helpers.picture_files import write_images
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close

DROPPING = "evit:keep_rate=0.3:blocks=(0,):fuse_token=False"
MERGING = "tome:r=5"
SIDE = tiny_vit.SIDE

pytestmark = pytest.mark.usefixtures("recoveries_compiled_once")


def reduced(reduction=DROPPING, **options):
    """A model of two blocks: what the first loses shows in the second."""
    return tiny_vit.pretrained(reduction, depth=2, **options)


def noise(count=48, side=SIDE, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.fixture(scope="module")
def vit():
    return reduced()


def kl(teacher, student):
    """KL(teacher || student), slowly, in float64."""
    p = softmax(teacher)
    return np.sum(p * (np.log(p) - np.log(softmax(student))), axis=-1)


@pytest.mark.parametrize("which", TRAINED)
def test_only_what_is_chosen_is_trained(which):
    params = tiny_vit.variables(tiny_vit.model(arch={"layer_scale": True}))["params"]
    part = trained_part(params, which)
    names = recovery_record.flat_params(part).keys()
    every = recovery_record.flat_params(params).keys()
    norms = {name for name in every if "norm" in name}
    others = {name for name in every if name.endswith(("bias", "gamma"))}
    assert names == {"all": every, "biases": norms | others, "norms": norms}[which]
    chex.assert_trees_all_equal(with_trained(params, part), params)


def test_a_step_is_relative_to_the_size_of_a_parameter():
    draw = np.random.default_rng(0)
    assert recovery_step.step_size("bias", np.zeros(8)) == pytest.approx(0.05)
    for name, share, values in (
        ("kernel", 1 / 4, draw.normal(0, 0.1, (16, 5))),
        ("scale", 1, draw.normal(2, 0.5, 8)),
        ("pos_embed", 1, draw.normal(0, 2, (1, 17, 8))),
    ):
        step = share * np.sqrt(np.mean(values**2))
        assert recovery_step.step_size(name, values) == pytest.approx(step, rel=1e-5)


def test_the_first_step_is_that_of_its_size_against_the_gradient(vit):
    recipe = recovery_step.RecoveryRecipe(batch_size=8, parameters="all")
    teacher = recovery_step.DenseTeacher(vit.with_reduction(None))
    fit = recovery_step.StudentFit(vit, recipe, teacher)
    before = fit.host_state().trained
    fit.train_step(noise(8)[None], 1e-3)
    after = fit.host_state().trained
    for name in ("kernel", "bias"):
        old, new = (each["blocks_1"]["mlp"]["fc1"][name] for each in (before, after))
        moved = np.abs(new - old)
        step = 1e-3 * float(recovery_step.step_size(name, old))
        assert np.median(moved) == pytest.approx(step, rel=0.01)


def recovered(vit, images=None, **fields):
    images = noise() if images is None else images
    options = {"steps": 8, "batch_size": 8, **fields}
    return imagepiece_jax.recover(vit, images, **options)


def logits_of(vit):
    """A model's logits of the images that are held out of `noise`, float64."""
    images = noise()[np.linspace(0, 47, 16).round().astype(int)]
    images = imagepiece_jax.normalize(images, vit.config.mean, vit.config.std)
    return tiny_vit.logits(vit.model)(vit.variables, images).astype(float)


@pytest.fixture(scope="module")
def better(vit):
    return recovered(vit, steps=40)


def test_the_loss_falls_and_the_model_stays_the_same_model(vit, better):
    (report,) = better.recovery.variants
    assert report.changed
    assert report.after < 0.8 * report.before
    assert report.interval[1] < 0
    assert (better.model, better.reduction) == (vit.model, vit.reduction)
    chex.assert_trees_all_equal_shapes_and_dtypes(better.variables, vit.variables)
    both = [recovery_record.flat_params(x.variables["params"]) for x in (better, vit)]
    for name in ("pos_embed", "blocks_1/mlp/fc1/kernel"):
        np.testing.assert_array_equal(*(params[name] for params in both))
    scales = [params["blocks_1/norm1/scale"] for params in both]
    assert np.any(scales[0] != scales[1])


def test_the_report_has_the_figures_of_the_images_held_out(vit, better):
    (report,) = better.recovery.variants
    assert (report.images, report.held_out, report.steps) == (32, 16, 40)
    dense = logits_of(vit.with_reduction(None))
    logits = [logits_of(vit), logits_of(better)]
    before, after = (kl(dense, each) for each in logits)
    assert [step for step, _ in report.curve] == [0, 4, 40]
    means = [value for _, value in report.curve]
    assert means[0] == report.before == report.off_the_shelf
    assert means[-1] == report.after
    assert report.before == pytest.approx(before.mean(), rel=1e-4)
    assert report.after == pytest.approx(after.mean(), rel=1e-4)
    change = statistics.mean_difference(after, before)
    assert report.interval == pytest.approx(change[1:], abs=1e-4 * before.mean())
    same = [100 * np.mean(each.argmax(-1) == dense.argmax(-1)) for each in logits]
    assert report.agreement == pytest.approx(same)
    assert (report.scenes, report.lr) == (16, pytest.approx(0.002 * 0.5**0.5))


def test_the_same_seed_gives_the_same_bits_and_another_does_not(vit):
    first = recovered(vit)
    second = recovered(vit)
    chex.assert_trees_all_equal(first.variables, second.variables)
    one, two, other = (
        each.recovery.variants[0].curve
        for each in (first, second, recovered(vit, seed=1))
    )
    assert one == two != other


def small_recovery():
    """A recovery of some steps."""
    return recovered(reduced())


ELSEWHERE = """
import sys
import jax
import numpy as np
from tests.recovery.test_recover import small_recovery
better = small_recovery()
leaves = map(np.asarray, jax.tree.leaves(better.variables))
np.savez(sys.argv[1], *leaves, curve=better.recovery.variants[0].curve)
"""


@pytest.mark.slow
def test_other_processes_and_devices_recover_the_same(tmp_path):
    """One device to the bit; several add up in another order."""
    cache = stored_programs.of_processes(tmp_path / "cache")
    processes = {}
    for devices in (1, 4):
        environment = small_runs.environment(cache, devices, quick=True)
        words = [sys.executable, "-c", ELSEWHERE, str(tmp_path / f"{devices}.npz")]
        processes[devices] = forked_processes.Process(words, env=environment)
    here = small_recovery()
    assert forked_processes.statuses(processes.values(), timeout=300) == [0, 0]
    curve = np.array(here.recovery.variants[0].curve)
    found = {n: np.load(tmp_path / f"{n}.npz") for n in processes}
    np.testing.assert_array_equal(found[1]["curve"], curve)
    for place, leaf in enumerate(jax.tree.leaves(here.variables)):
        np.testing.assert_array_equal(found[1][f"arr_{place}"], leaf)
    elsewhere = found[4]["curve"]
    np.testing.assert_array_equal(elsewhere[:, 0], curve[:, 0])
    # Each step of learning widens what the one before rounds.
    assert_close(elsewhere[:, 1], curve[:, 1], units=2**13)
    # It learns, so that an equal curve says something.
    assert abs(curve[-1, 1] / curve[0, 1] - 1) > 0.02


@pytest.fixture
def useless(monkeypatch):
    """Every learning rate is far too high."""
    monkeypatch.setattr(recovery_step, "REFERENCE_LR", 1e6)


@pytest.mark.usefixtures("useless")
def test_where_nothing_is_better_the_weights_come_back(vit):
    lost = recovered(vit)
    (report,) = lost.recovery.variants
    assert not report.changed
    assert report.after == report.before
    assert report.agreement[0] == report.agreement[1]
    chex.assert_trees_all_equal(lost.variables, vit.variables)


def test_the_rate_rises_shortly_and_falls_to_0(vit, monkeypatch):
    taken = interrupt(monkeypatch, step=0)
    (report,) = recovered(vit, steps=80).recovery.variants
    rates = [rate for _, rate in taken]
    assert len(rates) == 1 + 80
    assert rates[0] == 0  # the one that compiles
    highest = 0.002 * 0.5**0.5
    assert report.lr == pytest.approx(highest)
    shares = (np.arange(80) + 0.5) / 80
    expected = highest * (1 + np.cos(np.pi * shares)) / 2
    expected[:4] *= shares[:4] / 0.05
    assert_close(np.array(rates[1:]), expected)


@pytest.mark.parametrize("kind, restarts", [("nan", 1), ("twice", 1), ("nan", 2)])
def test_training_that_diverges_starts_again(vit, monkeypatch, caplog, kind, restarts):
    """At a quarter of the rate, from the start, which is said once."""
    taken = interrupt(monkeypatch, step=0)
    train_step = recovery_step.StudentFit.train_step
    measure = recovery_step.StudentFit.image_metrics

    def diverging(self, *args):
        loss = train_step(self, *args)
        return loss * np.nan if kind == "nan" and len(taken) in bad else loss

    def worse(self, *args):
        measured = measure(self, *args)
        if kind == "twice" and len(taken) == 5:  # a tenth of the steps
            measured["distance"] = measured["distance"] * 3
        return measured

    bad = [4, 7][:restarts]  # the third step of an attempt, after that which compiles
    monkeypatch.setattr(recovery_step.StudentFit, "train_step", diverging)
    monkeypatch.setattr(recovery_step.StudentFit, "image_metrics", worse)
    found = recovered(vit, steps=40)
    (report,) = found.recovery.variants
    assert report.lr == pytest.approx(0.002 * 0.5**0.5 / 4**restarts)
    assert report.steps == 40
    assert len(taken) == 1 + {"nan": 3 * restarts, "twice": 4}[kind] + 40
    assert caplog.text.count("diverged") == 1
    monkeypatch.undo()
    monkeypatch.setattr(recovery_step, "REFERENCE_LR", 0.002 / 4**restarts)
    chex.assert_trees_all_equal(recovered(vit, steps=40).variables, found.variables)


def interrupt(monkeypatch, step, presses=1):
    """Have Ctrl-C pressed in a step. Returns the arguments of all steps, a list."""
    train_step = recovery_step.StudentFit.train_step
    taken = []

    def interrupted(self, *args):
        taken.append(args)
        if len(taken) == step:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
        return train_step(self, *args)

    monkeypatch.setattr(recovery_step.StudentFit, "train_step", interrupted)
    return taken


def test_ctrl_c_leaves_the_weights_so_far(vit, monkeypatch, caplog):
    interrupt(monkeypatch, 30, presses=3)
    before = signal.getsignal(signal.SIGINT)
    stopped = recovered(vit, steps=40)
    assert signal.getsignal(signal.SIGINT) is before
    (report,) = stopped.recovery.variants
    assert report.stopped and report.changed
    assert report.steps == 29  # without the one that compiles
    assert report.after < report.before
    assert report.curve[-1] == (29, report.after)
    assert "so far are kept" in caplog.text


def test_ctrl_c_before_the_first_step_is_raised(vit, monkeypatch, caplog):
    interrupt(monkeypatch, 1)  # while it compiles
    with pytest.raises(KeyboardInterrupt):
        recovered(vit, steps=40)
    assert caplog.text.count(recover.NOTHING_BETTER) == 1


@pytest.mark.usefixtures("useless")
def test_ctrl_c_before_anything_is_better_leaves_the_weights(vit, monkeypatch, caplog):
    interrupt(monkeypatch, 10)
    stopped = recovered(vit, steps=40)
    (report,) = stopped.recovery.variants
    assert report.stopped and not report.changed
    chex.assert_trees_all_equal(stopped.variables, vit.variables)
    assert caplog.text.count(recover.NOTHING_BETTER) == 1


def test_a_dense_model_learns_on_from_the_costs_that_it_has():
    better = made_up_recoveries.recovered(tiny_vit.pretrained(None), reductions=(0.5,))
    forms = recover.reduced_models(better, better.with_reduction(None))
    assert [form.recovered is None for form in forms] == [True, False, True]


@pytest.mark.parametrize("step, other", [(1.0, 0.1), (40.0, 1.0), (1.0, 200.0)])
def test_minutes_are_those_of_the_steps(vit, monkeypatch, step, other):
    """On a busy machine compiling and a measure take longer than all 150 s."""
    taken = interrupt(monkeypatch, step=0)
    clock = [0.0]
    monkeypatch.setattr(recover.time, "monotonic", lambda: clock[0])
    slow(monkeypatch, clock, "train_step", step, first=other)
    slow(monkeypatch, clock, "image_metrics", other)
    (report,) = recovered(vit, steps=None, minutes=2.5).recovery.variants
    assert report.seconds == pytest.approx(clock[0], abs=0.1)
    assert report.steps == 150 // step  # the rate ends near 0
    assert report.curve[-1][0] == report.steps == len(taken) - 1
    assert report.changed
    if step == 1.0:
        assert taken[-1][1] < 1e-3 * report.lr


def slow(monkeypatch, clock, name, seconds, first=None):
    """A method of StudentFit takes so long by the clock, and the first call `first`."""
    call = getattr(recovery_step.StudentFit, name)
    calls = []

    def slowly(self, *args):
        clock[0] += seconds if calls or first is None else first
        calls.append(args)
        return call(self, *args)

    monkeypatch.setattr(recovery_step.StudentFit, name, slowly)


def test_damaged_images_are_left_out(vit, tmp_path, monkeypatch):
    first, *_ = write_images(tmp_path, noise(49))
    first.write_bytes(b"no image")
    learned, held_out = divided(monkeypatch, vit, tmp_path)
    assert (len(learned), len(held_out)) == (32, 16)


def test_a_recovered_model_learns_another_cost_and_its_own_again(vit, better):
    """By the true dense model, and from it; what was learned before stays."""
    merging = "tome:r=10"
    other = recovered(better.with_reduction(merging), steps=24)
    alone = recovered(vit.with_reduction(merging), steps=24)
    chex.assert_trees_all_equal(other.variables, alone.variables)
    assert other.recovery.variants[0].curve == alone.recovery.variants[0].curve
    names = [variant.reduction.name for variant in other.recovery.variants]
    assert names == ["tome", "evit"]
    own = other.with_reduction(DROPPING)
    chex.assert_trees_all_equal(own.variables, better.variables)
    chex.assert_trees_all_equal(other.with_reduction(None).variables, vit.variables)
    again = recovered(own, steps=24)
    assert other.recovery.variants[0] in again.recovery.variants
    (newest,) = [c for c in again.recovery.variants if c.reduction.name == "evit"]
    oldest = better.recovery.variants[0]
    assert newest.before == pytest.approx(oldest.after, rel=1e-5)
    assert newest.off_the_shelf == pytest.approx(oldest.before, rel=1e-5)
    for figure in (newest.off_the_shelf, newest.before, newest.after):
        assert f"{figure:.4f}" in str(newest)
    chex.assert_trees_all_equal(again.with_reduction(None).variables, vit.variables)


@pytest.mark.usefixtures("useless")
def test_what_was_recovered_stays_where_nothing_is_better(vit, better):
    """Learned again at its cost, and at the three of the dense model."""
    again = recovered(better, steps=2)
    (report,) = again.recovery.variants
    assert not report.changed
    assert report.before == pytest.approx(better.recovery.variants[0].after, rel=1e-5)
    chex.assert_trees_all_equal(again.variables, better.variables)
    assert again.label == better.label
    chex.assert_trees_all_equal(again.with_reduction(None).variables, vit.variables)
    of_dense = recovered(better.with_reduction(None), steps=1)
    assert len(of_dense.recovery.variants) == 4
    assert str(of_dense.recovery).count(recovery_record.NOTHING_LOWER) == 3
    own = of_dense.with_reduction(DROPPING)
    chex.assert_trees_all_equal(own.variables, better.variables)


@pytest.mark.parametrize("lr", [1e6, recovery_step.REFERENCE_LR])
def test_fewer_parameters_learned_again_leave_the_others(vit, monkeypatch, lr):
    """Whether the second training is kept or not."""
    first = recovered(vit)
    before = first.recovery.variants[0].values
    monkeypatch.setattr(recovery_step, "REFERENCE_LR", lr)
    again = recovered(first, steps=40, parameters="norms", seed=1)
    (report,) = again.recovery.variants
    assert report.changed == (lr < 1)
    assert report.values.keys() == before.keys()
    for path, value in before.items():
        if not report.changed or "norm" not in path:
            np.testing.assert_array_equal(report.values[path], value)
    chex.assert_trees_all_equal(again.with_reduction(None).variables, vit.variables)


@pytest.fixture(scope="module")
def public():
    return tiny_vit.pretrained(depth=2)


def test_a_dense_model_learns_three_costs(public):
    of_dense = recovered(public)
    assert of_dense.label == "none"
    chex.assert_trees_all_equal(of_dense.variables, public.variables)
    variants = of_dense.recovery.variants
    assert [round(variant.share, 1) for variant in variants] == [0.6, 0.5, 0.4]
    teacher = logits_of(public)
    for variant in variants:
        assert variant.steps == 8
        assert variant.changed
        form = of_dense.with_reduction(variant.reduction)
        assert form.recovered is variant
        plain = public.with_reduction(variant.reduction)
        for each, figure in ((plain, variant.before), (form, variant.after)):
            judged = kl(teacher, logits_of(each)).mean()
            assert figure == pytest.approx(judged, rel=1e-4)
    assert str(of_dense.recovery).splitlines() == [*map(str, variants)]
    # Each as if it were learned alone.
    alone = recovered(public.with_reduction(variants[1].reduction))
    half = of_dense.with_reduction(variants[1].reduction)
    chex.assert_trees_all_equal(half.variables, alone.variables)


@pytest.mark.parametrize("step", [14, 6])
def test_ctrl_c_keeps_the_costs_that_are_done(public, monkeypatch, caplog, step):
    """Of the first and the second, in which nothing was better yet; none follows."""
    train_step = recovery_step.StudentFit.train_step

    def first_alone(self, pixels, lr):
        if len(taken) > 9:  # of the second cost no number moves
            lr = 0.0
        return train_step(self, pixels, lr)

    monkeypatch.setattr(recovery_step.StudentFit, "train_step", first_alone)
    taken = interrupt(monkeypatch, step)
    stopped = recovered(public)
    assert len(taken) == step
    variants = stopped.recovery.variants
    assert [variant.changed for variant in variants] == [True]
    assert "so far are kept" in caplog.text


def test_progress_has_one_total_for_all_costs(public, monkeypatch):
    """In steps, from after the compilation; what diverged does not count twice."""
    shown = progress_of(monkeypatch)
    taken = interrupt(monkeypatch, step=0)
    train_step = recovery_step.StudentFit.train_step

    def once_not_finite(self, *args):
        return train_step(self, *args) * (np.nan if len(taken) == 5 else 1)

    monkeypatch.setattr(recovery_step.StudentFit, "train_step", once_not_finite)
    recovered(public)
    (bar,) = {bar for bar, _, _ in shown}
    assert bar.total == 24
    assert [n for _, n, _ in shown] == [1, 2, 3, 4, *range(1, 25)]
    assert shown[0][2] == 2  # one compiled


def test_costs_share_the_minutes_and_progress_is_in_seconds(public, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(recover.time, "monotonic", lambda: clock[0])
    slow(monkeypatch, clock, "train_step", 5.0)
    slow(monkeypatch, clock, "image_metrics", 7.0)
    shown = progress_of(monkeypatch)
    found = recovered(public, steps=None, minutes=3.0)
    (bar,) = {bar for bar, _, _ in shown}
    assert bar.total == 180
    assert [cost.steps for cost in found.recovery.variants] == [12, 12, 12]
    parts = (range(start + 5, start + 61, 5) for start in (0, 60, 120))
    assert [n for _, n, _ in shown] == [*itertools.chain(*parts)]


def progress_of(monkeypatch):
    """(bar, what is done, steps that were taken) at each update, a list."""
    shown = []
    taken = []
    train_step = recovery_step.StudentFit.train_step
    update = recover.ProgressBar.update

    def counted(self, *args):
        taken.append(args)
        return train_step(self, *args)

    def updated(self, n):
        update(self, n)
        if taken:  # of training, and not of reading the images
            shown.append((self, self.n, len(taken)))

    monkeypatch.setattr(recovery_step.StudentFit, "train_step", counted)
    monkeypatch.setattr(recover.ProgressBar, "update", updated)
    return shown


def test_a_model_without_a_class_token_learns_by_its_patches():
    """Here of images that are not square, which are cropped to that shape."""
    fields = {"class_token": False, "pool": "mean", "num_classes": 0}
    vit = reduced(MERGING, image_size=(16, 24), **fields).with_preprocessing(crop=0.875)
    (report,) = recovered(vit, noise(side=40), steps=24).recovery.variants
    assert report.measure == "change"
    assert report.changed
    assert report.after < report.before


def test_images_that_are_all_alike_are_learned_from(vit, caplog):
    """Just enough of one color each, and it is said that the report may be too good."""
    colors = np.repeat(np.arange(24, dtype=np.uint8), 3 * SIDE**2)
    with caplog.at_level("INFO", logger="imagepiece_jax"):
        found = recovered(vit, colors.reshape(24, SIDE, SIDE, 3))
    (report,) = found.recovery.variants
    assert (report.images, report.held_out, report.scenes) == (8, 16, 0)
    assert "too good" in caplog.text
    assert "too good" in str(report)
    for step, value in report.curve:
        assert caplog.text.count(f"step {step}, {value:.4f}") == 1


MISTAKES = [
    ({"images": noise(23)}, "images"),
    ({"images": []}, "images"),
    ({"images": np.float32(noise())}, "images"),
    ({"images": noise(1)[0]}, "images"),
    ({"steps": 3, "minutes": 1.0}, "minutes"),
    ({"parameters": "weights"}, "parameters"),
    ({"batch_size": 0}, "batch_size"),
    ({"steps": 0}, "steps"),
]


@pytest.mark.parametrize("given, subject", MISTAKES)
def test_mistakes_are_refused(vit, monkeypatch, given, subject):
    monkeypatch.setattr(recover, "StudentFit", None)  # nothing is compiled before
    with refused(subject):
        recovered(vit, **given)


def test_learned_selectors_are_refused():
    learned = tiny_vit.pretrained("dynamicvit:keep_rate=0.5:blocks=(1,)")
    with refused(learned.label):
        recovered(learned)


@pytest.mark.parametrize("reduction", [1, "tome:r=0"])
def test_a_reduction_that_leaves_all_tokens_has_nothing_to_recover(reduction):
    vit = tiny_vit.pretrained(reduction)
    with refused("reduction", "nothing to recover"):
        recovered(vit)


def test_a_dense_model_may_say_that_its_attention_is_proportional():
    recover.check_recoverable(tiny_vit.pretrained("none:prop_attn=True"))


def test_images_may_be_paths_a_folder_or_a_set(tmp_path):
    files = write_images(tmp_path, noise(3))
    sources = [as_source(tmp_path), as_source(files)]
    sources += [as_source([*noise(3)]), as_source(noise(3))]
    sources += [as_source(map(Image.open, files)), as_source(jax.numpy.array(noise(3)))]
    for source in sources:
        assert len(source) == 3
        np.testing.assert_array_equal(source[1].pixels, noise(3)[1])
    table = tmp_path / "table.csv"
    table.write_text("filename,split\n00.png,train\n01.png,train\n02.png,val")
    assert len(as_source(f"csv:{table}")) == 2


@pytest.mark.parametrize("kind", ["csv", "folders", "limited"])
def test_a_file_named_twice_is_learned_or_held_out(vit, tmp_path, monkeypatch, kind):
    count = 30
    write_images(tmp_path, noise(count))
    images = [tmp_path, tmp_path / ".." / tmp_path.name]
    if kind == "csv":
        rows = [f"{number % count:02}.png,0,train" for number in range(2 * count)]
        table = tmp_path / "table.csv"
        table.write_text("\n".join(["filename,label,split", *rows]))
        images = f"csv:{table}"
    if kind == "limited":
        images = as_source(images).evenly_spaced(2 * count - 1)
    parts = divided(monkeypatch, vit, images)
    learned, held_out = ({name[-6:] for name in names_of(part)} for part in parts)
    assert not learned & held_out
    assert len(learned | held_out) == count


def names_of(source):
    return [source.image_name(index) for index in range(len(source))]


def divided(monkeypatch, vit, images):
    """The images that `recover` learns from, and those that it holds out."""
    divide = recover.split_images

    def divided_only(*args):
        raise LookupError(divide(*args))

    monkeypatch.setattr(recover, "split_images", divided_only)
    with pytest.raises(LookupError) as stopped:
        imagepiece_jax.recover(vit, images, batch_size=8)
    (parts,) = stopped.value.args
    return parts.learned, parts.held_out


def test_copies_of_held_out_images_are_not_learned_from(vit, tmp_path, monkeypatch):
    """The same bytes, another size, another encoding. None is left out."""
    for number, small in enumerate(noise(30, side=5)):
        picture = Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{number:02}.png")
        picture.save(tmp_path / f"{number:02}-again.png")
        picture.save(tmp_path / f"{number:02}.jpg", quality=60)
        picture.resize((40, 40)).save(tmp_path / f"{number:02}-small.webp")
    parts = divided(monkeypatch, vit, tmp_path)
    start = len(str(tmp_path)) + 1
    learned, held_out = (
        {x[start : start + 2] for x in names_of(part)} for part in parts
    )
    assert not learned & held_out
    assert len(learned | held_out) == 30
    assert sum(map(len, parts)) == 120


def test_of_very_many_images_some_are_looked_through(vit, shown, monkeypatch, caplog):
    monkeypatch.setattr(recovery_images, "MAX_IMAGES", 40)
    learned, held_out = divided(monkeypatch, vit, noise(60))
    assert len(learned) + len(held_out) == 40
    assert "40 of the 60 images are taken" in caplog.text


def test_mean_difference_is_student_s():
    # scipy.stats.ttest_rel([1, 2, 4, 8], [0, 0, 1, 1]).confidence_interval()
    found = statistics.mean_difference(np.array([1, 2, 4, 8]), np.array([0, 0, 1, 1]))
    np.testing.assert_allclose(found, (3.25, -0.93485, 7.43485), atol=1e-4)


def test_a_model_without_finite_outputs_is_refused():
    vit = reduced()
    vit.variables["params"]["norm"]["bias"][:] = np.nan
    with refused("outputs are not finite"):
        imagepiece_jax.recover(vit, noise(), steps=1)


def test_a_recovered_model_knows_the_images_that_it_learned_from(vit, tmp_path):
    """Those of both recoveries; None where the first did not say."""
    images = noise(48)
    (once,) = imagepiece_jax.recover(vit, images, steps=1).recovery.variants
    assert len(once.learned) == 8 * once.images
    assert once.learned == recovery_images.split_images(as_source(images), 16).digests
    before = made_up_recoveries.variant_of(vit, values=made_up_recoveries.values(vit))
    for earlier, wanted in ((None, None), ("01234567", "01234567" + once.learned)):
        first = dataclasses.replace(before, learned=earlier)
        started = dataclasses.replace(vit, recovery=recovery_record.Recovery((first,)))
        (again, *_) = imagepiece_jax.recover(started, images, steps=1).recovery.variants
        assert again.learned == wanted
    named = dataclasses.replace(vit, recovery=recovery_record.Recovery((once,)))
    saved = imagepiece_jax.save(named, tmp_path / "w")
    config = json.loads((saved / "config.json").read_text())
    assert imagepiece_jax.load(saved).recovery.variants == (once,)
    del config["imagepiece_jax"]["recovery"]["variants"][0]["learned"]  # an earlier one
    (saved / "config.json").write_text(json.dumps(config))
    assert imagepiece_jax.load(saved).recovery.variants[0].learned is None
