"""Recovery: its loss by hand, what moves, what is kept, and what is refused."""

import dataclasses
import functools
import warnings

import chex
import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.config.run import TRAINED
from imagepiece_jax.data.unlabeled import open_unlabeled
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.models.config import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.training import optimizer, recover, train_step
from tests.models import tiny
from tests.refused import refused

DROPPING = {"name": "evit", "keep_rate": 0.5, "blocks": (1,), "fuse_token": False}
MERGING = {"name": "tome", "r": 5}
SIDE = tiny.SIDE


def noise(count=48, side=SIDE, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, side, side, 3), np.uint8)


@pytest.fixture(scope="module")
def vit():
    return tiny.pretrained(DROPPING)


def fit_of(vit, **fields):
    return recover.Fit(vit, recover.Recipe.of(vit, batch_size=8, **fields))


def kl(teacher, student):
    """KL(teacher || student), slowly, in float64."""
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (teacher, student))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    return np.sum(p * (np.log(p) - np.log(q)), axis=-1)


def stream(model, variables, images):
    """The tokens after each block, by the module's own intermediates."""
    _, found = model.apply(
        variables, images, capture_intermediates=True, mutable=["intermediates"]
    )
    return [
        np.asarray(found["intermediates"][f"blocks_{b}"]["__call__"][0][0].x)
        for b in range(model.depth)
    ]


def test_the_loss_is_that_of_its_definition(vit):
    fit, images = fit_of(vit), tiny.images(4)
    dense = vit.with_reduction(None)
    both = [
        train_step.answers(each.model, vit.variables, images, fit.comparison.read)
        for each in (vit, dense)
    ]
    logits = [
        np.asarray(each.model.apply(vit.variables, images).logits, np.float64)
        for each in (vit, dense)
    ]
    by_hand = kl(logits[1], logits[0])
    tokens = [stream(each.model, vit.variables, images) for each in (vit, dense)]
    shares = [
        ((ours[:, 0] - theirs[:, 0]) ** 2).sum(-1) / (theirs[:, 0] ** 2).sum(-1)
        for ours, theirs in zip(*tokens, strict=True)
    ]
    terms = fit.comparison.terms(*both)
    chex.assert_trees_all_close(terms["logits"], by_hand, rtol=1e-4, atol=1e-6)
    by_hand_tokens = np.mean(shares, axis=0)
    chex.assert_trees_all_close(terms["class_tokens"], by_hand_tokens, rtol=1e-4)
    # Blocks before the first reduction are the dense model's own.
    assert np.all(shares[0] == 0) and np.all(shares[2] > 0)
    total = np.mean(by_hand + 0.5 * by_hand_tokens)
    assert float(fit.comparison.loss(*both)) == pytest.approx(total, rel=1e-4)


def test_classes_that_are_each_by_themselves_have_a_divergence_each():
    student, teacher = np.random.default_rng(0).normal(size=(2, 5, 3))
    p, q = (1 / (1 + np.exp(-logits)) for logits in (teacher, student))
    by_hand = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    found = train_step.binary_kl_divergence(student, teacher)
    np.testing.assert_allclose(found, by_hand.sum(-1), rtol=1e-4)
    vit = dataclasses.replace(
        tiny.pretrained(DROPPING), problem_type="multi_label_classification"
    )
    assert recovered(vit).recovery.measure == "KL"


def test_a_patch_is_compared_with_the_token_that_has_it():
    vit = tiny.pretrained(DROPPING, num_classes=0)
    images = tiny.images(2)
    found = train_step.answers(vit.model, vit.variables, images, ("patches",))
    maps = imagepiece_jax.features(vit, images, reshape=False)
    kept = ~np.asarray(maps.dropped)
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(found["kept"] > 0, kept)
    ours, theirs = (np.asarray(x)[kept] for x in (found["patches"], maps.patches))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_relative_change_by_hand():
    teacher = np.array([[[3.0, 4.0], [1.0, 0.0]]], np.float32)
    student = np.array([[[3.0, 5.0], [0.0, 0.0]]], np.float32)
    assert train_step.relative_change(student, teacher) == pytest.approx(
        [(1 / 25 + 1) / 2]
    )
    kept = np.array([[1.0, 0.0]], np.float32)
    assert train_step.relative_change(student, teacher, kept) == pytest.approx([0.04])


@pytest.mark.parametrize("which", TRAINED)
def test_only_what_is_chosen_is_trained(vit, which):
    params = vit.variables["params"]
    part = optimizer.trained_part(params, which)
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(part)
    }
    every = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    }
    norms = {name for name in every if "norm" in name}
    biases = {name for name in every if name.endswith("bias")}
    expected = {"all": every, "biases": norms | biases, "norms": norms}
    assert names == expected[which]
    chex.assert_trees_all_equal(optimizer.with_trained(params, part), params)


def test_layer_scale_is_trained_with_the_biases():
    arch = {"layer_scale": True}
    params = tiny.variables(tiny.model(arch=arch))["params"]
    part = optimizer.trained_part(params, "biases")
    assert part["blocks_0"]["ls1"]["gamma"] is params["blocks_0"]["ls1"]["gamma"]
    assert optimizer.trained_part(params, "norms")["blocks_0"]["ls1"]["gamma"] is None


def test_gradients_of_a_part_are_those_of_the_whole(vit):
    fit, images = fit_of(vit), tiny.images(4)
    params = vit.variables["params"]
    read = fit.comparison.read
    targets = train_step.answers(fit.dense, vit.variables, images, read)

    def loss(part):
        return fit.comparison.loss(fit._answers(vit.variables, part, images), targets)

    whole = jax.grad(loss)(params)
    part = optimizer.trained_part(params, "biases")
    chex.assert_trees_all_close(
        jax.grad(loss)(part),
        optimizer.trained_part(whole, "biases"),
        rtol=1e-5,
        atol=1e-7,
    )


def test_a_step_needs_no_gradient_of_what_stays():
    """By XLA's count: the products for the weights' gradients are left out."""
    # Wide enough that products of matrices are nearly all of the work.
    sizes = {"embed_dim": 192, "image_size": 48}
    vit = tiny.pretrained(DROPPING, **sizes)

    def flops(call, *args):
        return jax.jit(call).lower(*args).cost_analysis()["flops"]

    images = tiny.images(8, side=48)
    forward = {
        name: flops(each.model.clone(head_only=True).apply, vit.variables, images)
        for name, each in (("student", vit), ("dense", vit.with_reduction(None)))
    }
    forwards = {}
    for which in ("biases", "all"):
        fit = fit_of(vit, parameters=which)

        def loss_and_gradient(trained, fit=fit):
            targets = fit._targets_of(vit.variables, images)

            def loss(trained):
                own = fit._answers(vit.variables, trained, images)
                return fit.comparison.loss(own, targets)

            return jax.value_and_grad(loss)(trained)

        count = flops(loss_and_gradient, fit.split(vit.variables["params"]))
        forwards[which] = (count - forward["dense"]) / forward["student"]
    assert forwards["biases"] < 2.4 < forwards["all"]


def recovered(vit, images=None, **fields):
    images = noise() if images is None else images
    options = {"steps": 8, "batch_size": 8, **fields}
    return imagepiece_jax.recover(vit, images, **options)


@pytest.fixture(scope="module")
def better(vit):
    return recovered(vit, steps=40)


def test_the_loss_falls_and_the_model_stays_the_same_model(vit, better):
    report = better.recovery
    assert report.changed and report.after < 0.8 * report.before
    assert report.interval[1] < 0
    assert (better.model, better.reduction) == (vit.model, vit.reduction)
    chex.assert_trees_all_equal_shapes_and_dtypes(better.variables, vit.variables)
    kernels = [
        (
            better.variables["params"]["blocks_1"]["mlp"]["fc1"]["kernel"],
            vit.variables["params"]["blocks_1"]["mlp"]["fc1"]["kernel"],
        ),
        (
            better.variables["params"]["pos_embed"],
            vit.variables["params"]["pos_embed"],
        ),
    ]
    for ours, theirs in kernels:
        np.testing.assert_array_equal(ours, theirs)
    assert np.any(
        better.variables["params"]["blocks_1"]["norm1"]["scale"]
        != vit.variables["params"]["blocks_1"]["norm1"]["scale"]
    )


def test_the_report_has_the_figures_of_the_images_held_out(vit, better):
    report = better.recovery
    images = noise()
    places = np.linspace(0, 47, 16).round().astype(int)
    assert (report.images, report.held_out, report.steps) == (32, 16, 40)
    held = imagepiece_jax.normalize(images[places], vit.model.mean, vit.model.std)
    dense = vit.with_reduction(None)
    logits = {
        name: np.asarray(each.model.apply(each.variables, held).logits, np.float64)
        for name, each in (("dense", dense), ("before", vit), ("after", better))
    }
    before, after = (kl(logits["dense"], logits[n]) for n in ("before", "after"))
    assert report.before == pytest.approx(before.mean(), rel=1e-4)
    assert report.after == pytest.approx(after.mean(), rel=1e-4)
    change = statistics.mean_difference(after, before)
    assert report.interval == pytest.approx(change[1:], rel=1e-3)
    first = {name: each.argmax(-1) for name, each in logits.items()}
    shares = [100 * np.mean(first[n] == first["dense"]) for n in ("before", "after")]
    assert report.agreement == pytest.approx(shares)
    assert [steps for steps, _ in report.curve] == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    assert report.after == min(value for _, value in report.curve)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(vit):
    first, second = recovered(vit), recovered(vit)
    chex.assert_trees_all_equal(first.variables, second.variables)
    assert first.recovery.curve == second.recovery.curve
    assert recovered(vit, seed=1).recovery.curve != first.recovery.curve


def test_where_nothing_is_better_the_weights_come_back(vit, monkeypatch):
    useless = functools.partial(recover.Recipe.of, lr=1e3)
    monkeypatch.setattr(recover.Recipe, "of", useless)
    lost = recovered(vit)
    assert not lost.recovery.changed
    assert lost.recovery.after == lost.recovery.before
    chex.assert_trees_all_equal(lost.variables, vit.variables)


def test_ctrl_c_leaves_the_best_so_far(vit, monkeypatch, capsys):
    take, steps = recover.Fit.take, []

    def interrupted(self, *args):
        steps.append(args)
        if len(steps) == 30:
            raise KeyboardInterrupt
        return take(self, *args)

    monkeypatch.setattr(recover.Fit, "take", interrupted)
    stopped = recovered(vit, steps=40)
    report = stopped.recovery
    assert report.stopped and report.steps == 29 and report.changed
    assert report.after == min(value for _, value in report.curve)
    assert "stopped" in capsys.readouterr().err


def test_minutes_become_steps(vit, monkeypatch):
    monkeypatch.setattr(recover, "seconds_of_step", lambda fit, batches: 20.0)
    assert recovered(vit, steps=None, minutes=2.5).recovery.steps in (6, 7)


def test_minutes_include_those_of_the_measures(vit, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(recover.time, "monotonic", lambda: clock[0])
    measure = recover.Fit.measure

    def slow(self):
        clock[0] += 10
        return measure(self)

    monkeypatch.setattr(recover.Fit, "measure", slow)
    monkeypatch.setattr(recover, "seconds_of_step", lambda fit, batches: 20.0)
    # 150 s: two measures before the first step, eight on the way, and two steps
    assert recovered(vit, steps=None, minutes=2.5).recovery.steps == 2


@pytest.mark.parametrize("place", [0, 1])  # held out, learned from
def test_damaged_images_are_left_out(vit, tmp_path, caplog, place):
    from PIL import Image

    for number, pixels in enumerate(noise(49)):
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")
    (tmp_path / f"{place:02}.png").write_bytes(b"no image")
    report = recovered(vit, tmp_path).recovery
    assert (report.images, report.held_out) == (32, 16)
    assert f"{place:02}.png cannot be read" in caplog.text


def test_a_saved_model_knows_what_it_was_recovered_for(better, tmp_path):
    imagepiece_jax.save(tmp_path / "m", better)
    again = imagepiece_jax.load(tmp_path / "m")
    assert again.recovery == better.recovery
    chex.assert_trees_all_equal(again.variables, better.variables)
    for warned in (
        lambda: again.with_reduction(MERGING),
        lambda: again.with_reduction(None),
        lambda: imagepiece_jax.load(tmp_path / "m", reduction=MERGING),
    ):
        with pytest.warns(UserWarning, match="recovered for evit") as found:
            warned()
        assert [each.filename for each in found] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.with_reduction(DROPPING)
    with refused("the model"):
        recovered(again)


@pytest.mark.parametrize("classes", [0, tiny.CLASSES])
def test_a_model_without_a_class_token_learns_by_its_patches(classes):
    arch = {"class_token": False, "pool": "mean"}
    vit = tiny.pretrained(MERGING, arch=arch, num_classes=classes)
    report = recovered(vit, steps=24).recovery
    assert report.measure == ("KL" if classes else "change")
    assert report.changed and report.after < report.before


@pytest.mark.parametrize("class_token", [True, False])
def test_a_model_without_a_pool_is_compared_by_the_pool_it_could_have(class_token):
    arch = {"class_token": class_token, "pool": "none"}
    vit = tiny.pretrained(MERGING, arch=arch, num_classes=0)
    pool = "token" if class_token else "mean"
    pooled = tiny.pretrained(MERGING, arch=arch | {"pool": pool}, num_classes=0)
    images = tiny.images(2)
    found = train_step.answers(vit.model, vit.variables, images, ("patches",))
    wanted = pooled.model.apply(vit.variables, images).pooled
    np.testing.assert_allclose(found["logits"], wanted, rtol=1e-5, atol=1e-6)
    assert recovered(vit).recovery.measure == "change"


def test_images_that_are_not_square_are_cropped_to_their_shape():
    size = (16, 24)
    model = create_model(
        "vit_mini",
        reduction=MERGING,
        image_size=size,
        patch_size=4,
        embed_dim=30,
        depth=2,
        num_heads=3,
        num_classes=7,
    )
    preprocessing = imagepiece_jax.Preprocessing(size, crop=0.875)
    vit = Pretrained(model, tiny.variables(model), MERGING, preprocessing)
    assert recovered(vit, noise(side=40)).recovery.steps == 8


@pytest.mark.parametrize(
    "case, subject, value",
    [
        ("few", "images", 23),
        ("alike", "images", None),
        ("one color", "images", None),
        ("floats", "images", "float32 [20, 20, 3]"),
        ("a number", "images", "int"),
        ("one", "images", 1),
        ("both", "minutes", None),
        ("part", "parameters", "weights"),
        ("batch", "batch_size", 0),
        ("no step", "steps", 0),
    ],
)
def test_mistakes_are_refused(vit, case, subject, value):
    colors = np.broadcast_to(
        np.arange(48, dtype=np.uint8)[:, None, None, None], (48, SIDE, SIDE, 3)
    )
    images = {
        "few": noise(23),
        "alike": np.repeat(noise(1), 48, axis=0),
        "one color": colors,
        "floats": np.zeros((48, SIDE, SIDE, 3), np.float32),
        "a number": 3,
        "one": noise(1)[0],
    }
    options = {
        "both": {"steps": 3, "minutes": 1.0},
        "part": {"parameters": "weights"},
        "batch": {"batch_size": 0},
        "no step": {"steps": 0},
    }
    with refused(subject, value):
        recovered(vit, images.get(case), **options.get(case, {}))


def test_a_dense_model_and_learned_selectors_are_refused():
    with refused(
        "the model", None, "vit.with_reduction(", "--config.reduction.name=tome"
    ):
        recovered(tiny.pretrained())
    learned = tiny.pretrained({"name": "dynamicvit", "keep_rate": 0.5, "blocks": (1,)})
    with refused(learned.label):
        recovered(learned)


def test_images_may_be_paths_a_folder_or_a_set(tmp_path):
    from PIL import Image

    for number, pixels in enumerate(noise(3)):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    files = sorted(tmp_path.glob("*.png"))
    sources = [open_unlabeled(tmp_path), open_unlabeled(files)]
    sources += [open_unlabeled([*noise(3)]), open_unlabeled(noise(3))]
    pictures = map(Image.open, files)
    sources += [open_unlabeled(pictures), open_unlabeled(jax.numpy.array(noise(3)))]
    for source in sources:
        assert len(source) == 3
        np.testing.assert_array_equal(source.read(1)[0], noise(3)[1])
    assert len(open_unlabeled("digits")) > 1000


def test_mean_difference_is_student_s():
    # scipy.stats.ttest_rel([1, 2, 4, 8], [0, 0, 1, 1]).confidence_interval()
    found = statistics.mean_difference([1, 2, 4, 8], [0, 0, 1, 1])
    np.testing.assert_allclose(found, (3.25, -0.93485, 7.43485), atol=1e-4)


def test_a_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recover.Recipe().lr = 1.0
