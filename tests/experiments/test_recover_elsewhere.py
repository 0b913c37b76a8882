"""Recovery elsewhere: cells of a tiny model by other code, the declared tests."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import scipy.stats

import imagepiece_jax
from experiments import recover, study
from experiments import recover_elsewhere as elsewhere
from experiments.damage import DAMAGE
from experiments.recover_elsewhere import OFF, RECOVERED_FORM, REVERSE, Cell, Student
from imagepiece_jax.common import timer
from imagepiece_jax.data.pictures import ArraySource
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.cache import decode_bits
from tests import markdown
from tests.command import call
from tests.experiments import lines
from tests.experiments.test_late import logits, slow_kl
from tests.experiments.test_maps import random_head
from tests.experiments.test_recover import CHOSE
from tests.models import tiny

COUNT = 96
DROPPING = {"name": "evit", "keep_rate": 0.5, "blocks": (1,), "fuse_token": False}
STUDENTS = {
    "three-0.5": Student("reduced", DROPPING, tiny.SIDE),
    "small-176": Student("small", None, 16),
    "large-0.5": Student("large", DROPPING, 24),
    "tome-0.5": Student("encoder", DROPPING, tiny.SIDE, "encoder"),
}


class Watched(ArraySource):
    """Images, and the places that were read."""

    def __init__(self, images):
        super().__init__(images)
        self.seen = set()

    def read(self, index):
        self.seen.add(index)
        return super().read(index)


@pytest.fixture(scope="module")
def images():
    shape = (COUNT, tiny.SIDE, tiny.SIDE, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    vit = tiny.pretrained()
    imagepiece_jax.save(path / "weights", vit)
    np.savez(path / "head.npz", **random_head(tiny.WIDTH))
    # A recovered model is any with other numbers.
    moved = jax.tree.map(lambda leaf: leaf * np.float32(1.01), vit.variables)
    student = dataclasses.replace(vit, variables=moved).with_reduction(DROPPING)
    for name in ("three-0.5.chosen.A1", "three-0.5.imagenette.A0"):
        imagepiece_jax.save(path / "recovered" / name, student)
    return path


@pytest.fixture
def whole(folder, images):
    return elsewhere.Study(
        weights=str(folder / "weights"),
        photographs=Watched(list(images)),
        recovered=folder / "recovered",
        encoder=str(folder / "weights"),
        decoder=folder / "head.npz",
        students=STUDENTS.copy(),
        steps=1,
        calibration=5,
        size=tiny.SIDE,
        large=24,
    )


def test_a_recovered_model_is_judged_on_damaged_rows_it_did_not_learn(
    whole, images, tmp_path
):
    cell = Cell("damage", "three-0.5", RECOVERED_FORM, "A")
    study.run([cell], tmp_path, whole.digests, whole.measure)
    found = lines.read(tmp_path)[cell.name]
    rows = images[1::2]
    dense = imagepiece_jax.load(whole.weights)
    student = imagepiece_jax.load(whole.recovered / "three-0.5.chosen.A1")
    for name in (elsewhere.CLEAN, "noise .2"):
        shown = rows
        if name in DAMAGE:
            shown = [DAMAGE[name](image, place) for place, image in enumerate(rows)]
        kl, right = study.unpacked(found[name])
        shown = np.stack(shown)
        want = slow_kl(logits(dense, shown), logits(student, shown))
        np.testing.assert_allclose(kl, want, rtol=2e-3, atol=2e-5)
        assert len(right) == 48
    assert found["gmacs"] == student.gmacs


def test_smaller_images_are_resized_on_the_way(whole):
    vit = whole.model(Cell("damage", "small-176", OFF, "B"))
    assert vit.image_size == 16
    batches = whole.clean("B")
    found = study.answerer(vit)(batches)
    images = np.float32(batches[0]["image"][0][:48])
    mean = 255 * np.float32(vit.model.mean)
    std = 255 * np.float32(vit.model.std)
    small = jax.image.resize((images - mean) / std, (48, 16, 16, 3), "cubic")
    want = tiny.logits(vit.model)(vit.variables, small)
    np.testing.assert_allclose(found, want, atol=2e-5)


def test_int8_is_calibrated_by_rows_that_were_learned_from(whole):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    cell = Cell("int8", "three-0.5", RECOVERED_FORM, "A")
    vit = whole.model(cell)
    whole.clean("A")
    assert whole.photographs.seen == set(range(1, COUNT, 2))
    found = whole.in_int8(cell, vit)
    calibrating = whole.photographs.seen - set(range(1, COUNT, 2))
    assert len(calibrating) == 5
    assert all(place % 2 == 0 for place in calibrating)
    kl, _ = study.unpacked(found[elsewhere.CLEAN])
    pixels = np.stack(whole.photographs.images[1::2])
    float32, _ = study.unpacked(whole.judged(cell, logits(vit, pixels)))
    assert len(kl) == 48
    assert not np.allclose(kl, float32, rtol=1e-3)


def test_a_model_is_recovered_once(whole, folder):
    cell = Cell("large", "large-0.5", RECOVERED_FORM)
    assert whole.missing(cell) is None
    first = whole.model(cell)
    assert first.image_size == 24
    assert first.recovery.costs[0].steps == 1
    assert whole.photographs.seen <= set(range(0, COUNT, 2))
    whole.photographs.seen.clear()
    again = whole.model(cell)
    assert again.recovery.costs == first.recovery.costs
    assert not whole.photographs.seen
    found = whole.at_large_size(Cell("large", "dense"), whole.dense_model(24))
    kl, _ = study.unpacked(found[elsewhere.CLEAN])
    np.testing.assert_array_equal(kl, 0)


def test_models_that_are_recovered_here_have_folders_of_their_own():
    """ToMe at .5 is a student of both studies, on different models."""
    kept = {cell.name for cell in recover.cells()}
    ours = [cell for cell in elsewhere.cells() if cell.student not in elsewhere.STORED]
    folders = {cell.folder for cell in ours} - {None}
    assert len(folders) > 1
    assert not folders & kept


def test_a_model_of_another_reduction_is_refused(whole):
    whole.students["three-0.5"] = Student("other", {"name": "tome", "r": 2}, tiny.SIDE)
    with pytest.raises(InputError, match="three-0.5.chosen.A1 has evit"):
        whole.model(Cell("damage", "three-0.5", RECOVERED_FORM))


def test_maps_are_those_of_the_features(whole, images):
    cell = Cell("maps", "tome-0.5")
    found = whole.on_maps(cell, whole.model(cell))
    rows = images[1::2]
    dense = imagepiece_jax.load(whole.encoder)
    own = dense.with_reduction(DROPPING)
    ours = np.asarray(imagepiece_jax.features(own, rows).patches).reshape(48, 25, -1)
    theirs = np.asarray(imagepiece_jax.features(dense, rows).patches).reshape(
        48, 25, -1
    )
    dots = np.sum(ours * theirs, axis=2)
    lengths = np.linalg.norm(ours, axis=2) * np.linalg.norm(theirs, axis=2)
    want = (dots / lengths).mean(axis=1)
    np.testing.assert_allclose(found["cosine"], want, atol=2e-5)
    assert len(found["iou"]) == len(found["correlation"]) == 48


def test_cells_wait_for_what_is_not_there(whole):
    missing = {cell.name: whole.missing(cell) for cell in elsewhere.cells()}
    assert missing["damage.three-0.5.recovered.A"] is None
    assert missing["damage.three-0.5.from-imagenette.A"] is None
    path = str(whole.recovered / "three-0.5.chosen.B1")
    assert missing["damage.three-0.5.recovered.B"] == path
    assert missing["imagenette.dense.off.A"] == "--imagenette"
    assert missing["maps.tome-0.5.recovered.A"] is None
    bare = dataclasses.replace(whole, encoder=None)
    assert bare.missing(Cell("maps", "tome-0.5")) == "--encoder and --decoder"


@pytest.fixture
def results(tmp_path):
    """Drawn figures: recovered models are better but in int8, where they are worse."""
    draw = np.random.default_rng(0)
    runs = {}
    for cell in elsewhere.cells():
        gain = {RECOVERED_FORM: -0.1, REVERSE: -0.05}.get(cell.form, 0.0)
        if cell.kind == "int8":
            gain = -gain
        found = {}
        for name in (elsewhere.CLEAN, *DAMAGE):
            kl = np.abs(draw.normal(1 + gain, 0.05, 100))
            found[name] = study.stored(kl, draw.random(100) < 0.8)
        found["imagenette"] = study.stored_right(draw.random(60) < 0.6)
        found["classes"] = {"0": [20, 30], "217": [16, 30]}
        found["agreement"] = 0.8
        found["kl"] = [0.1, 0.05, 0.15]
        found["iou"] = [None, *draw.normal(0.7 - gain, 0.05, 99)]
        found["cosine"] = list(draw.normal(0.9, 0.05, 100))
        runs[cell.name] = found
    lines.write(tmp_path, runs)
    return elsewhere.Results(tmp_path)


def test_tests_follow_from_the_cells(results):
    tests = elsewhere.primary(results)
    assert [test.name[:2] for test in tests] == [f"E{n}" for n in range(1, 9)]

    def kl(kind, form, condition):
        # Fold B without every fifth image or so: those that chose the recipe.
        of_a, of_b = (
            study.unpacked(
                results.runs[Cell(kind, "three-0.5", form, fold)][condition]
            )[0]
            for fold in "AB"
        )
        choosing = np.linspace(0, 99, 20).round().astype(int)
        return np.concatenate([of_a, np.delete(of_b, choosing)])

    change = kl("damage", RECOVERED_FORM, "blur 2") - kl("damage", OFF, "blur 2")
    assert len(change) == 180
    want = scipy.stats.ttest_1samp(change, 0.0)
    assert tests[1].p == pytest.approx(want.pvalue)
    assert tests[1].change.high == pytest.approx(want.confidence_interval(0.95).high)
    iou = [
        np.array(results.runs[Cell("maps", "tome-0.5", form)]["iou"][1:])
        for form in (RECOVERED_FORM, OFF)
    ]
    assert tests[6].p == pytest.approx(scipy.stats.ttest_rel(*iou).pvalue)
    rows = markdown.tables(study.tests_table(tests))[0]
    verdicts = [row["verdict"] for row in rows]
    assert verdicts == ["holds"] * 4 + ["worse"] + ["holds"] * 3


def test_the_smaller_image_of_the_same_time_learns_from_the_same_images(results):
    ours, rival = (
        study.unpacked_right(
            results.runs[Cell("imagenette", student, REVERSE)]["imagenette"]
        )
        for student in ("three-0.5", "small-176")
    )
    found = elsewhere.same_time(results)
    gained = int((ours & ~rival).sum())
    changed = int((ours ^ rival).sum())
    want = scipy.stats.binomtest(gained, changed)
    assert found.p == pytest.approx(want.pvalue)
    assert found.change.value == pytest.approx(100 * (ours.mean() - rival.mean()))


def test_the_page_has_what_is_there(results, tmp_path):
    del results.runs[Cell("large", "large-0.5", RECOVERED_FORM)]
    absent = [test.name for test in elsewhere.primary(results) if not test.change]
    assert [name[:2] for name in absent] == ["E6"]
    runs = lines.read(tmp_path)
    del runs["large.large-0.5.recovered.A"]
    lines.write(tmp_path, runs)
    page = elsewhere.page(tmp_path)
    assert "Not measured yet: E6" in page
    assert "1 cells: `large.large-0.5.recovered.A`." in page
    rows = markdown.tables(page)[1]
    dense = [row for row in rows if row["KL / points"] == "dense"]
    right = results.crossfitted(Cell("damage", "dense"), "blur 1")[1]
    assert dense[0]["blur 1"] == f"{100 * right.mean():.1f} %"
    assert "| English springer, % | 53.3 |" in page


def test_the_page_is_that_of_the_committed_cells():
    folder = markdown.ROOT / elsewhere.FOLDER
    assert (folder / "README.md").read_text("utf-8") == elsewhere.page(folder)


def on_imagenette(student, form):
    """The figures of a committed cell, and acc1 in percent by its classes."""
    found = lines.committed(elsewhere.FOLDER)[f"imagenette.{student}.{form}.A"]
    right, images = np.sum([*found["classes"].values()], axis=0)
    return found | {"acc1": 100 * right / images}


def test_the_page_gives_the_figures_of_the_committed_cells():
    figures = {}
    for form in (OFF, RECOVERED_FORM, "from-imagenette"):
        divergence = on_imagenette("three-0.5", form)["kl"][0]
        figures[f"{form}, KL"] = f"{divergence:.3f}"
    for form in (OFF, RECOVERED_FORM):
        agreement = on_imagenette("three-0.5", form)["agreement"]
        figures[f"{form}, agreement"] = f"{100 * agreement:.1f}"
    for student in ("three-0.4", "small-176"):
        figures[f"{student}, off"] = f"{on_imagenette(student, OFF)['acc1']:.1f}"
    for student in ("three-0.6", "three-0.4", "small-176"):
        accuracy = on_imagenette(student, "from-imagenette")["acc1"]
        figures[student] = f"{accuracy:.1f}"
    rival = on_imagenette("small-176", "from-imagenette")
    ahead = rival["acc1"] - on_imagenette("three-0.5", "from-imagenette")["acc1"]
    figures["I1"] = f"{ahead:.1f}"
    assert not markdown.lacking(figures, "docs/tables/recover_elsewhere/README.md")


def test_the_page_gives_the_figures_of_damage_and_of_rounded_weights():
    """Both folds together, without the 100 even rows that chose the recipe."""

    def judged(student, form, damage, kind="damage"):
        folds = []
        for fold in "AB":
            name = f"{kind}.{student}.{form}.{fold}"
            found = lines.committed(elsewhere.FOLDER)[name][damage]
            right = decode_bits(found["right"], found["images"])
            both = np.stack([found["kl"], right])
            if fold == "B":
                both = np.delete(both, CHOSE, axis=1)
            folds.append(both)
        return np.concatenate(folds, axis=1).mean(axis=1)

    figures = {}
    for damage in ("noise .2", "blur 2", "JPEG 10"):
        _, dense = judged("dense", OFF, damage)
        for form in (OFF, RECOVERED_FORM):
            kl, right = judged("three-0.5", form, damage)
            figures[form, damage, "KL"] = f"{kl:.3f}"
            figures[form, damage] = f"{100 * (dense - right):.1f}"
    _, dense = judged("dense", OFF, elsewhere.CLEAN)
    for kind in ("bfloat16", "int8", "int8-openvino"):
        for form in (OFF, RECOVERED_FORM):
            _, right = judged("three-0.5", form, elsewhere.CLEAN, kind)
            figures[form, kind] = f"{100 * (dense - right):.1f}"
    assert not markdown.lacking(figures, "docs/tables/recover_elsewhere/README.md")


def test_the_page_gives_the_figures_of_large_images_and_of_maps():
    def cell(name, form):
        return lines.committed(elsewhere.FOLDER)[f"{name}.{form}.A"]

    def accuracy(name, form):
        found = cell(f"large.{name}", form)[elsewhere.CLEAN]
        return decode_bits(found["right"], found["images"]).mean()

    figures = {}
    dense = accuracy("dense", OFF)
    for form in (OFF, RECOVERED_FORM):
        figures["large", form] = f"{100 * (dense - accuracy('large-0.5', form)):.1f}"
        for name in ("tome-0.6", "tome-0.5", "attended-0.6", "attended-0.5"):
            overlap = np.nanmean(np.array(cell(f"maps.{name}", form)["iou"], float))
            figures[name, form] = f"{overlap:.3f}"
    assert not markdown.lacking(figures, "docs/tables/recover_elsewhere/README.md")


def test_the_first_page_gives_the_fastest_form():
    """Times as fast as dense float32, and odd rows that int8 has right."""
    folder = markdown.ROOT / elsewhere.FOLDER
    cell = lines.committed(elsewhere.FOLDER)["int8-openvino.three-0.5.recovered.A"]
    found = cell[elsewhere.CLEAN]
    right = decode_bits(found["right"], found["images"])
    figures = {"acc1": f"{100 * right.mean():.1f}"}
    for row in json.loads((folder / "times.json").read_text())["rows"]:
        form = (row["runtime"], row["weights"], row["batch_size"])
        if form == ("OpenVINO", "int8", 8):
            figures[row["student"]] = f"{row['ratio'][0]:.1f}"
    assert len(figures) == 3
    assert not markdown.lacking(figures, "README.md")


def test_times_are_in_turns_beside_the_dense_model(whole, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    # OpenVINO corrupts memory with a model as small as this one.
    monkeypatch.setattr(elsewhere.importlib.util, "find_spec", lambda name: None)
    rules = timer.Rules(warmup=1, repeats=2, seconds=0.0)
    rows = elsewhere.measure_times(whole, rules)["rows"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        if (row["student"], row["weights"]) == ("dense", "float32"):
            assert row["ratio"] == (1, 1, 1)
        assert row["runtime"] == "onnxruntime"


def test_the_command_lists_and_writes_its_page(tmp_path):
    listed = call(elsewhere.main, "--list", "--only", "maps.*").ok()
    assert len(listed.out.splitlines()) == 8
    call(elsewhere.main, "--tables", "--out", tmp_path).ok()
    assert "Not measured yet" in (tmp_path / "README.md").read_text("utf-8")


class Labeled(ArraySource):
    """Small images of two classes."""

    def __init__(self, images):
        super().__init__(images)
        self.labels = np.arange(len(images)) % 2

    def read(self, index):
        return self.images[index], int(self.labels[index])


def test_imagenette_is_judged_without_what_the_reverse_learned(whole):
    shape = (540, 24, 24, 3)
    pixels = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    judge = dataclasses.replace(whole, imagenette=Labeled(list(pixels)))
    vit = whole.dense_model(tiny.SIDE)
    student = whole.model(Cell("imagenette", "three-0.5", RECOVERED_FORM))
    found = judge.on_imagenette(Cell("imagenette", "dense"), vit)
    learned = np.linspace(0, 539, 500).round().astype(int)
    places = np.setdiff1d(np.arange(540), learned)
    crop = Preprocessing(tiny.SIDE, crop=0.875)
    own = logits(vit, np.stack([crop(pixels[place]) for place in places]))
    want = own.argmax(axis=1) == places % 2
    assert found["imagenette"]["images"] == 40
    np.testing.assert_array_equal(study.unpacked_right(found["imagenette"]), want)
    assert found["agreement"] == 1
    assert found["kl"] == [0, 0, 0]
    odd = places % 2 == 1
    right = {"0": [int(want[~odd].sum()), int((~odd).sum())]}
    right["1"] = [int(want[odd].sum()), int(odd.sum())]
    assert found["classes"] == right

    other = judge.on_imagenette(Cell("imagenette", "three-0.5"), student)
    theirs = logits(student, np.stack([crop(pixels[place]) for place in places]))
    np.testing.assert_allclose(other["kl"][0], slow_kl(own, theirs).mean(), rtol=1e-3)
    same = theirs.argmax(axis=1) == own.argmax(axis=1)
    assert other["agreement"] == pytest.approx(same.mean())
