"""Recovery: what moves, what is kept, and what is refused."""

import shutil
import signal
import sys

import chex
import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.data import pictures
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.models import recovery_record
from imagepiece_jax.models.trainable import TRAINED, trained_part, with_trained
from imagepiece_jax.recover import recover, recovery_images, recovery_step
from tests import forked, programs, runs
from tests.models import recoveries, tiny
from tests.refused import refused
from tests.rounding import assert_close

DROPPING = "evit:keep_rate=0.3:blocks=(0,):fuse_token=False"
MERGING = "tome:r=5"
SIDE = tiny.SIDE

pytestmark = pytest.mark.usefixtures("recoveries_compiled_once")


def reduced(reduction=DROPPING, **options):
    """A model of two blocks: what the first loses shows in the second."""
    return tiny.pretrained(reduction, depth=2, **options)


def noise(count=48, side=SIDE, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.fixture(scope="module")
def vit():
    return reduced()


def fit_of(vit, **fields):
    teacher = recovery_step.DenseTeacher(vit.with_reduction(None))
    return recovery_step.Fit(vit, recovery_step.Recipe(batch_size=8, **fields), teacher)


def kl(teacher, student):
    """KL(teacher || student), slowly, in float64."""
    p = np.exp(teacher - teacher.max(-1, keepdims=True))
    q = np.exp(student - student.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    q = q / q.sum(-1, keepdims=True)
    return np.sum(p * (np.log(p) - np.log(q)), axis=-1)


@pytest.mark.parametrize("which", TRAINED)
def test_only_what_is_chosen_is_trained(which):
    params = tiny.variables(tiny.model(arch={"layer_scale": True}))["params"]
    part = trained_part(params, which)
    names = recovery_record.flat_params(part).keys()
    every = recovery_record.flat_params(params).keys()
    norms = {name for name in every if "norm" in name}
    others = {name for name in every if name.endswith(("bias", "gamma"))}
    expected = {"all": every, "biases": norms | others, "norms": norms}
    assert names == expected[which]
    chex.assert_trees_all_equal(with_trained(params, part), params)


def test_a_step_is_relative_to_the_size_of_a_parameter():
    draw = np.random.default_rng(0)
    kernel = draw.normal(0, 0.1, (16, 5))
    size = np.sqrt(np.mean(kernel**2))
    step = recovery_step.step_size("kernel", kernel)
    assert step == pytest.approx(size / 4, rel=1e-5)
    scale = draw.normal(2, 0.5, 8)
    size = np.sqrt(np.mean(scale**2))
    assert recovery_step.step_size("scale", scale) == pytest.approx(size, rel=1e-5)
    assert recovery_step.step_size("bias", np.zeros(8)) == pytest.approx(0.05)
    positions = draw.normal(0, 2, (1, 17, 8))
    size = np.sqrt(np.mean(positions**2))
    step = recovery_step.step_size("pos_embed", positions)
    assert step == pytest.approx(size, rel=1e-5)


def test_the_first_step_is_that_of_its_size_against_the_gradient(vit):
    fit = fit_of(vit, parameters="all")
    before = fit.get().trained
    fit.take_step(noise(8)[None], 1e-3)
    after = fit.get().trained
    for name in ("kernel", "bias"):
        old, new = (each["blocks_1"]["mlp"]["fc1"][name] for each in (before, after))
        moved = np.abs(new - old)
        step = 1e-3 * float(recovery_step.step_size(name, old))
        assert np.median(moved) == pytest.approx(step, rel=0.01)


def recovered(vit, images=None, **fields):
    images = noise() if images is None else images
    options = {"steps": 8, "batch_size": 8, **fields}
    return imagepiece_jax.recover(vit, images, **options)


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
    ours = better.variables["params"]
    theirs = vit.variables["params"]
    np.testing.assert_array_equal(ours["pos_embed"], theirs["pos_embed"])
    block = ours["blocks_1"]
    before = theirs["blocks_1"]
    kernels = [each["mlp"]["fc1"]["kernel"] for each in (block, before)]
    np.testing.assert_array_equal(*kernels)
    assert np.any(block["norm1"]["scale"] != before["norm1"]["scale"])


def test_the_report_has_the_figures_of_the_images_held_out(vit, better):
    (report,) = better.recovery.variants
    images = noise()
    places = np.linspace(0, 47, 16).round().astype(int)
    assert (report.images, report.held_out, report.steps) == (32, 16, 40)
    held = imagepiece_jax.normalize(
        images[places], vit.model.config.mean, vit.model.config.std
    )
    dense = vit.with_reduction(None)
    logits = {}
    for name, each in (("dense", dense), ("before", vit), ("after", better)):
        logits[name] = tiny.logits(each.model)(each.variables, held).astype(float)
    before = kl(logits["dense"], logits["before"])
    after = kl(logits["dense"], logits["after"])
    steps = [step for step, _ in report.curve]
    assert steps == [0, 4, 40]
    means = [value for _, value in report.curve]
    assert means[0] == report.before == report.off_the_shelf
    assert means[-1] == report.after
    assert report.before == pytest.approx(before.mean(), rel=1e-4)
    assert report.after == pytest.approx(after.mean(), rel=1e-4)
    change = statistics.mean_difference(after, before)
    assert report.interval == pytest.approx(change[1:], abs=1e-4 * before.mean())
    same = {}
    for name in ("before", "after"):
        first = logits[name].argmax(-1) == logits["dense"].argmax(-1)
        same[name] = 100 * first.mean()
    assert report.agreement == pytest.approx((same["before"], same["after"]))
    assert (report.scenes, report.lr) == (16, pytest.approx(0.002 * 0.5**0.5))


def test_the_same_seed_gives_the_same_bits_and_another_does_not(vit):
    first = recovered(vit)
    second = recovered(vit)
    chex.assert_trees_all_equal(first.variables, second.variables)
    curves = []
    for each in (first, second, recovered(vit, seed=1)):
        curves.append(each.recovery.variants[0].curve)
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def small_recovery():
    """A recovery of some steps."""
    return recovered(reduced())


ELSEWHERE = """
import sys
import jax
import numpy as np
from tests.recover.test_recover import small_recovery
better = small_recovery()
leaves = map(np.asarray, jax.tree.leaves(better.variables))
np.savez(sys.argv[1], *leaves, curve=better.recovery.variants[0].curve)
"""


@pytest.mark.slow
def test_other_processes_and_devices_recover_the_same(tmp_path):
    """One device to the bit; several add up in another order."""
    cache = programs.of_processes(tmp_path / "cache")
    processes = {}
    for devices in (1, 4):
        environment = runs.environment(cache, devices, quick=True)
        words = [sys.executable, "-c", ELSEWHERE, str(tmp_path / f"{devices}.npz")]
        processes[devices] = forked.Process(words, env=environment)
    here = small_recovery()
    assert forked.statuses(processes.values(), timeout=300) == [0, 0]
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
    monkeypatch.setattr(recovery_step, "RATE", 1e6)


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
    (report,) = recovered(vit, steps=80, batch_size=4).recovery.variants
    rates = [rate for _, rate in taken]
    assert len(rates) == 1 + 80
    assert rates[0] == 0  # the one that compiles
    highest = 0.002 / 2
    assert report.lr == pytest.approx(highest)
    shares = (np.arange(80) + 0.5) / 80
    expected = highest * (1 + np.cos(np.pi * shares)) / 2
    expected[:4] *= shares[:4] / 0.05
    assert_close(np.array(rates[1:]), expected)


@pytest.mark.parametrize("kind, restarts", [("nan", 1), ("twice", 1), ("nan", 2)])
def test_training_that_diverges_starts_again(vit, monkeypatch, caplog, kind, restarts):
    """At a quarter of the rate, from the start, which is said once."""
    taken = interrupt(monkeypatch, step=0)
    take_step = recovery_step.Fit.take_step
    measure = recovery_step.Fit.measure

    def diverging(self, *args):
        loss = take_step(self, *args)
        return loss * np.nan if kind == "nan" and len(taken) in bad else loss

    def worse(self, *args):
        measured = measure(self, *args)
        if kind == "twice" and len(taken) == 5:  # a tenth of the steps
            measured["distance"] = measured["distance"] * 3
        return measured

    bad = [4, 7][:restarts]  # the third step of an attempt, after that which compiles
    monkeypatch.setattr(recovery_step.Fit, "take_step", diverging)
    monkeypatch.setattr(recovery_step.Fit, "measure", worse)
    found = recovered(vit, steps=40)
    (report,) = found.recovery.variants
    assert report.lr == pytest.approx(0.002 * 0.5**0.5 / 4**restarts)
    assert report.steps == 40
    spent = {"nan": 3 * restarts, "twice": 4}[kind]
    assert len(taken) == 1 + spent + 40
    assert caplog.text.count("diverged") == 1
    monkeypatch.undo()
    monkeypatch.setattr(recovery_step, "RATE", 0.002 / 4**restarts)
    chex.assert_trees_all_equal(recovered(vit, steps=40).variables, found.variables)


def interrupt(monkeypatch, step, presses=1):
    """Have Ctrl-C pressed in a step. Returns the arguments of all steps, a list."""
    take_step = recovery_step.Fit.take_step
    taken = []

    def interrupted(self, *args):
        taken.append(args)
        if len(taken) == step:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
        return take_step(self, *args)

    monkeypatch.setattr(recovery_step.Fit, "take_step", interrupted)
    return taken


def test_ctrl_c_leaves_the_weights_so_far(vit, monkeypatch, caplog):
    interrupt(monkeypatch, 30, presses=3)
    before = signal.getsignal(signal.SIGINT)
    stopped = recovered(vit, steps=40)
    assert signal.getsignal(signal.SIGINT) is before
    (report,) = stopped.recovery.variants
    assert report.stopped
    assert report.steps == 29  # without the one that compiles
    assert report.changed
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
    assert report.stopped
    assert not report.changed
    chex.assert_trees_all_equal(stopped.variables, vit.variables)
    assert caplog.text.count(recover.NOTHING_BETTER) == 1


def test_a_dense_model_learns_on_from_the_costs_that_it_has():
    better = recoveries.recovered(tiny.pretrained(None), reductions=(0.5,))
    forms = recover.reduced_models(better, better.with_reduction(None))
    assert [form.recovered is None for form in forms] == [True, False, True]


@pytest.mark.parametrize("step, measure", [(1.0, 0.1), (40.0, 1.0)])
def test_minutes_are_all_of_the_time(vit, monkeypatch, step, measure):
    """Of 150 s: a compilation of 30 s, steps and measures. The rate ends near 0."""
    taken = interrupt(monkeypatch, step=0)
    clock = [0.0]
    monkeypatch.setattr(recover.time, "monotonic", lambda: clock[0])
    slow(monkeypatch, clock, "take_step", step, first=30 + step)
    slow(monkeypatch, clock, "measure", measure)
    (report,) = recovered(vit, steps=None, minutes=2.5).recovery.variants
    assert report.seconds == pytest.approx(clock[0], abs=0.1)
    assert report.seconds <= 150 + step + measure
    if step == 1.0:
        assert report.seconds > 140
    assert report.curve[-1][0] == report.steps == len(taken) - 1
    if step == 1.0:
        assert taken[-1][1] < 1e-3 * report.lr


def slow(monkeypatch, clock, name, seconds, first=None):
    """A method of Fit takes so long by the clock, and the first call `first`."""
    call = getattr(recovery_step.Fit, name)
    calls = []

    def slowly(self, *args):
        clock[0] += seconds if calls or first is None else first
        calls.append(args)
        return call(self, *args)

    monkeypatch.setattr(recovery_step.Fit, name, slowly)


def test_damaged_images_are_left_out(vit, tmp_path):
    from PIL import Image

    for number, pixels in enumerate(noise(49)):
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    (tmp_path / "00.png").write_bytes(b"no image")
    (report,) = recovered(vit, tmp_path).recovery.variants
    assert (report.images, report.held_out) == (32, 16)


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
    said = str(of_dense.recovery)
    assert said.count(recovery_record.NOTHING_LOWER) == 3
    own = of_dense.with_reduction(DROPPING)
    chex.assert_trees_all_equal(own.variables, better.variables)


@pytest.mark.parametrize("lr", [1e6, recovery_step.LR])
def test_fewer_parameters_learned_again_leave_the_others(vit, monkeypatch, lr):
    """Whether the second training is kept or not."""
    first = recovered(vit)
    before = first.recovery.variants[0].values
    monkeypatch.setattr(recovery_step, "LR", lr)
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
    return tiny.pretrained(depth=2)


def test_a_dense_model_learns_three_costs(public):
    of_dense = recovered(public)
    assert of_dense.label == "none"
    chex.assert_trees_all_equal(of_dense.variables, public.variables)
    variants = of_dense.recovery.variants
    assert [round(variant.share, 1) for variant in variants] == [0.6, 0.5, 0.4]
    places = np.linspace(0, 47, 16).round().astype(int)
    images = noise()[places]
    held = imagepiece_jax.normalize(
        images, public.model.config.mean, public.model.config.std
    )
    teacher = tiny.logits(public.model)(public.variables, held).astype(float)
    for variant in variants:
        assert variant.steps == 8
        assert variant.changed
        form = of_dense.with_reduction(variant.reduction)
        assert form.recovered is variant
        for variables, figure in (
            (public.variables, variant.before),
            (form.variables, variant.after),
        ):
            logits = tiny.logits(form.model)(variables, held).astype(float)
            judged = kl(teacher, logits).mean()
            assert figure == pytest.approx(judged, rel=1e-4)
    assert str(of_dense.recovery).splitlines() == [*map(str, variants)]
    # Each as if it were learned alone.
    alone = recovered(public.with_reduction(variants[1].reduction))
    half = of_dense.with_reduction(variants[1].reduction)
    chex.assert_trees_all_equal(half.variables, alone.variables)


@pytest.mark.parametrize("step", [14, 6])
def test_ctrl_c_keeps_the_costs_that_are_done(public, monkeypatch, caplog, step):
    """Of the first and the second, in which nothing was better yet; none follows."""
    take_step = recovery_step.Fit.take_step

    def first_alone(self, pixels, lr):
        if len(taken) > 9:  # of the second cost no number moves
            lr = 0.0
        return take_step(self, pixels, lr)

    monkeypatch.setattr(recovery_step.Fit, "take_step", first_alone)
    taken = interrupt(monkeypatch, step)
    stopped = recovered(public)
    assert len(taken) == step
    variants = stopped.recovery.variants
    assert [variant.changed for variant in variants] == [True]
    assert "so far are kept" in caplog.text


def test_costs_share_the_minutes(public, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(recover.time, "monotonic", lambda: clock[0])
    slow(monkeypatch, clock, "take_step", 5.0)
    variants = recovered(public, steps=None, minutes=3.0).recovery.variants
    assert [variant.seconds for variant in variants] == [60, 60, 60]


def test_progress_has_one_total_for_all_costs(public, monkeypatch):
    """In steps, from after the compilation; what diverged does not count twice."""
    shown = progress_of(monkeypatch)
    taken = interrupt(monkeypatch, step=0)
    take_step = recovery_step.Fit.take_step

    def once_not_finite(self, *args):
        return take_step(self, *args) * (np.nan if len(taken) == 5 else 1)

    monkeypatch.setattr(recovery_step.Fit, "take_step", once_not_finite)
    recovered(public)
    (bar,) = {bar for bar, _, _ in shown}
    assert bar.total == 24
    steps = [n for _, n, _ in shown]
    assert steps == [1, 2, 3, 4, *range(1, 25)]
    assert shown[0][2] == 2  # one compiled


def test_progress_of_minutes_is_in_seconds(public, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(recover.time, "monotonic", lambda: clock[0])
    slow(monkeypatch, clock, "take_step", 5.0)
    shown = progress_of(monkeypatch)
    recovered(public, steps=None, minutes=3.0)
    (bar,) = {bar for bar, _, _ in shown}
    assert bar.total == 180
    assert [n for _, n, _ in shown] == [
        *range(10, 61, 5),
        *range(70, 121, 5),
        *range(130, 181, 5),
    ]


def progress_of(monkeypatch):
    """(bar, what is done, steps that were taken) at each update, a list."""
    shown = []
    taken = []
    take_step = recovery_step.Fit.take_step
    update = recover.ProgressBar.update

    def counted(self, *args):
        taken.append(args)
        return take_step(self, *args)

    def updated(self, n):
        update(self, n)
        if taken:  # of training, and not of reading the images
            shown.append((self, self.n, len(taken)))

    monkeypatch.setattr(recovery_step.Fit, "take_step", counted)
    monkeypatch.setattr(recover.ProgressBar, "update", updated)
    return shown


def test_messages_are_the_logger_s(vit, caplog):
    with caplog.at_level("INFO", logger="imagepiece_jax"):
        (report,) = recovered(vit).recovery.variants
    for step, value in report.curve:
        assert caplog.text.count(f"step {step}, {value:.4f}") == 1


def test_a_model_without_a_class_token_learns_by_its_patches():
    arch = {"class_token": False, "pool": "mean"}
    vit = reduced(MERGING, arch=arch, num_classes=0)
    (report,) = recovered(vit, steps=24).recovery.variants
    assert report.measure == "change"
    assert report.changed
    assert report.after < report.before


def test_images_that_are_not_square_are_cropped_to_their_shape():
    size = (16, 24)
    vit = tiny.pretrained(MERGING, depth=2, image_size=size)
    vit = vit.with_preprocessing(crop=0.875)
    (report,) = recovered(vit, noise(side=40)).recovery.variants
    assert report.steps == 8


ONE_COLOR = np.repeat(np.arange(48, dtype=np.uint8), 3 * SIDE**2)


@pytest.mark.parametrize(
    "images",
    [np.repeat(noise(1), 48, axis=0), ONE_COLOR.reshape(48, SIDE, SIDE, 3)],
    ids=["one image", "one color"],
)
def test_images_that_are_all_alike_are_learned_from(vit, caplog, images):
    """And it is said that the report may be too good."""
    (report,) = recovered(vit, images).recovery.variants
    assert (report.images, report.held_out, report.scenes) == (32, 16, 0)
    assert "too good" in caplog.text
    assert "too good" in str(report)


MISTAKES = [
    ({"images": noise(23)}, "images", 23),
    ({"images": np.float32(noise())}, "images", "float32 [48, 20, 20, 3]"),
    ({"images": noise(1)[0]}, "images", 1),
    ({"steps": 3, "minutes": 1.0}, "minutes", None),
    ({"parameters": "weights"}, "parameters", "weights"),
    ({"batch_size": 0}, "batch_size", 0),
    ({"steps": 0}, "steps", 0),
]


@pytest.mark.parametrize("given, subject, value", MISTAKES)
def test_mistakes_are_refused(vit, monkeypatch, given, subject, value):
    monkeypatch.setattr(recover, "Fit", None)  # nothing is compiled before
    with refused(subject):
        recovered(vit, **given)


def test_learned_selectors_are_refused():
    learned = tiny.pretrained("dynamicvit:keep_rate=0.5:blocks=(1,)")
    with refused(learned.label):
        recovered(learned)


@pytest.mark.parametrize("reduction", [1, "tome:r=0"])
def test_a_reduction_that_leaves_all_tokens_has_nothing_to_recover(reduction):
    vit = tiny.pretrained(reduction)
    with refused("reduction", "nothing to recover"):
        recovered(vit)


def test_a_dense_model_may_say_that_its_attention_is_proportional():
    recover.check_recoverable(tiny.pretrained("none:prop_attn=True"))


def test_images_may_be_paths_a_folder_or_a_set(tmp_path):
    from PIL import Image

    for number, pixels in enumerate(noise(3)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    files = sorted(tmp_path.glob("*.png"))
    sources = [as_source(tmp_path), as_source(files)]
    sources += [as_source([*noise(3)]), as_source(noise(3))]
    pictures = map(Image.open, files)
    sources += [as_source(pictures), as_source(jax.numpy.array(noise(3)))]
    for source in sources:
        assert len(source) == 3
        np.testing.assert_array_equal(source[1].pixels, noise(3)[1])
    table = tmp_path / "table.csv"
    rows = ["filename,label,split", "0.png,0,train", "1.png,0,train", "2.png,0,val"]
    table.write_text("\n".join(rows))
    assert len(as_source(f"csv:{table}")) == 2


@pytest.mark.parametrize("splits", [("train", "valid"), ("train", "test")])
def test_of_a_folder_with_splits_train_is_learned_from(tmp_path, capsys, splits):
    from PIL import Image

    root = tmp_path / "set"
    for number, pixels in enumerate(noise(6)):
        folder = root / splits[number % 2] / "any"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    for images in (root, [root]):
        source = as_source(images)
        names = [source.name(index).rpartition("/")[2] for index in range(len(source))]
        assert names == ["0.png", "2.png", "4.png"]
    learned, test = splits
    assert f"set holds {learned} and {test}; {learned} is" in capsys.readouterr().out
    # To look at images is to look at all of them.
    assert len(pictures.find_images([root])) == 6
    shutil.rmtree(root / test)
    assert len(as_source(root)) == 3


@pytest.mark.parametrize("kind", ["csv", "folders", "limited"])
def test_a_file_that_is_named_twice_is_not_both_learned_and_held_out(
    vit, tmp_path, monkeypatch, kind
):
    from PIL import Image

    count = 30
    for number, pixels in enumerate(noise(count)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    images = [tmp_path, tmp_path / ".." / tmp_path.name]
    if kind == "csv":
        rows = [f"{number % count}.png,0,train" for number in range(2 * count)]
        table = tmp_path / "table.csv"
        table.write_text("\n".join(["filename,label,split", *rows]))
        images = f"csv:{table}"
    if kind == "limited":
        images = as_source(images).evenly_spaced(2 * count - 1)
    parts = divided(monkeypatch, vit, images)
    names = []
    for part in parts:
        paths = [part.name(index) for index in range(len(part))]
        names.append({path.rpartition("/")[2] for path in paths})
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == count


def divided(monkeypatch, vit, images):
    """The images that `recover` learns from, and those that it holds out."""
    parts = []
    divide = recover.divided

    def divided_only(*args):
        parts.append(divide(*args))
        raise InputError("nothing is trained")

    monkeypatch.setattr(recover, "divided", divided_only)
    with pytest.raises(InputError, match="nothing is trained"):
        imagepiece_jax.recover(vit, images, batch_size=8)
    return parts[0].learned, parts[0].held_out


def test_copies_of_held_out_images_are_not_learned_from(vit, tmp_path, monkeypatch):
    """The same bytes, another size, another encoding. None is left out."""
    from PIL import Image

    for number, small in enumerate(noise(30, side=5)):
        picture = Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{number:02}.png")
        picture.save(tmp_path / f"{number:02}-again.png")
        picture.save(tmp_path / f"{number:02}.jpg", quality=60)
        picture.resize((40, 40)).save(tmp_path / f"{number:02}-small.webp")
    parts = divided(monkeypatch, vit, tmp_path)
    pictures = []
    for part in parts:
        names = [part.name(index).rpartition("/")[2] for index in range(len(part))]
        pictures.append({name[:2] for name in names})
    assert not pictures[0] & pictures[1]
    assert len(pictures[0] | pictures[1]) == 30
    assert sum(map(len, parts)) == 120


def test_of_very_many_images_some_are_looked_through(vit, shown, monkeypatch, caplog):
    monkeypatch.setattr(recovery_images, "MAX_IMAGES", 40)
    learned, held_out = divided(monkeypatch, vit, noise(60))
    assert len(learned) + len(held_out) == 40
    assert "40 of the 60 images are taken" in caplog.text


@pytest.mark.parametrize(
    "images, said",
    [
        ([None], "images is NoneType; an image is"),
        (np.zeros((24, 48, 48), np.uint8), "images is uint8 [24, 48, 48]; an"),
        ([np.zeros((4, 4), np.uint8), 3], "images is uint8 [4, 4]; an image is"),
        ("no.png", "images: no.png does not exist"),
    ],
)
def test_an_image_has_a_number_where_there_are_several(images, said):
    with pytest.raises(InputError) as caught:
        as_source(images)
    assert str(caught.value).startswith(said)


def test_just_enough_images_are_enough(vit):
    (report,) = recovered(vit, noise(24)).recovery.variants
    assert (report.images, report.held_out) == (8, 16)


def test_mean_difference_is_student_s():
    # scipy.stats.ttest_rel([1, 2, 4, 8], [0, 0, 1, 1]).confidence_interval()
    found = statistics.mean_difference([1, 2, 4, 8], [0, 0, 1, 1])
    np.testing.assert_allclose(found, (3.25, -0.93485, 7.43485), atol=1e-4)
