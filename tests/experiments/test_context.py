"""How points are measured: figures as evaluation's, kept, paired, honestly labelled."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from imagepiece_jax.common import parallel
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.experiments import (
    analysis,
    overlap,
    reassess,
    rows,
    similarity,
)
from imagepiece_jax.experiments.images import Part
from imagepiece_jax.experiments.rows import DENSE, Row
from imagepiece_jax.models import pretrained
from imagepiece_jax.models.vit import MEAN, STD
from imagepiece_jax.reduction import settings
from tests.experiments import small_lab

TOME = {"name": "tome", "r": 4}


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return small_lab.subject(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory, subject):
    folder = tmp_path_factory.mktemp("out")
    made = small_lab.lab(folder, subject=subject)
    yield made
    made.points.close()


def test_figures_are_those_of_evaluation(lab, subject):
    found = lab.answers(subject, settings.DENSE)
    model = subject.model()
    variables, untrained = subject.variables(model)
    right = np.zeros(24, bool)
    expected = accuracy.evaluate(
        accuracy.compiled(model),
        parallel.replicate(variables),
        iter(lab.images.batches()),
        right,
    )
    assert not untrained and found["images"] == 24
    for name in ("acc1", "acc5", "loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    assert found.right.tolist() == right.tolist()


def test_merging_nothing_is_the_dense_model(lab, subject):
    """r = 0 gives the same answers, losses and costs."""
    dense = lab.answers(subject, settings.DENSE)
    none = lab.answers(subject, {"name": "tome", "r": 0})
    assert none["loss"] == dense["loss"] and none["gmacs"] == dense["gmacs"]
    assert none.right.tolist() == dense.right.tolist()


def test_a_point_has_its_whole_setting(lab, subject):
    lab.answers(subject, TOME)
    text = (lab.out / "points.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in text]
    (line,) = [x for x in lines if x["setting"]["reduction"].get("r") == 4]
    setting, result = line["setting"], line["result"]
    assert setting["use"] == "off-the-shelf" and setting["data"] == "digits"
    assert setting["fields"]["embed_dim"] == 8 and setting["images"] == 24
    assert setting["reduction"]["prop_attn"] is True  # as ToMe is meant
    assert setting["weights"] == subject.digest and setting["seed"] == 0
    assert result["tokens_per_block"] == [[65, 61], [61, 57], [57, 53], [53, 49]]
    assert result["tokens"] == 49


def test_a_part_of_the_images_is_another_point_with_the_same_answers(lab, subject):
    whole = lab.answers(subject, settings.DENSE).right
    places = np.array([3, 4, 11, 23])
    part = lab.images.part(places)
    assert lab.answers(subject, settings.DENSE, part).right.tolist() == (
        whole[places].tolist()
    )
    other = lab.images.part(np.array([3, 4, 11, 22]))
    assert other.setting["part"] != part.setting["part"]
    nested = part.part(np.array([1, 3]))
    assert isinstance(nested.source, Part)
    assert nested.setting["part"] == lab.images.part(places[[1, 3]]).setting["part"]


def test_a_subset_must_have_images():
    with pytest.raises(InputError, match="--subset is 0"):
        small_lab.images(0)


def slow_reassess(told, place, after, kept):
    """Mean share, token by token, of merged tokens among the `kept` most attended."""
    shares = []
    dest = np.asarray(told.results[place].dest)
    attention = np.asarray(told.taps[after].cls_attn)
    for slots, scores in zip(dest, attention, strict=True):
        merged = [s for s in set(slots) if (slots == s).sum() > 1]
        order = sorted(range(len(scores)), key=lambda t: (-scores[t], t))
        shares.append(np.mean([order.index(s) < kept for s in merged]))
    return 100 * np.mean(shares)


@pytest.fixture(scope="module")
def told(lab, subject):
    """All that ImagePiece's steps say of the images."""
    import jax

    from imagepiece_jax.data.normalize import normalize

    reduction = {"name": "imagepiece"}
    model = analysis.observed(subject.model(reduction))
    variables, _ = subject.variables(model)
    batches = [batch["image"] for batch in lab.images.batches()]
    pixels = normalize(np.concatenate(batches, axis=1)[0], MEAN, STD)
    return model, jax.jit(model.apply)(variables, pixels)


@pytest.mark.slow
def test_ratios_of_merged_tokens_are_those_of_a_slow_count(lab, subject, told):
    model, outputs = told
    found = reassess.ratios(lab, subject, {"name": "imagepiece"})
    assert list(found) == ["1", "2"]
    sites = {site.block: site for site in analysis.sites(model)}
    for block, rule in ((1, "(a)"), (2, "(b)")):
        here, before = sites[block], sites[block - 1]
        n = here.counts.n_in
        upper = n - int(0.3 * n + 1e-9)
        own = here.counts.n_out if rule == "(b)" else upper
        figures = found[str(block)]
        assert figures["rule"].startswith(rule)
        for name, kept in (("own", own), ("candidates", upper)):
            slow = slow_reassess(outputs, before.place, here.place, kept)
            assert figures[name][0] == pytest.approx(slow, rel=1e-5)


@pytest.mark.slow
def test_observing_changes_no_decision(subject, told, lab):
    import jax

    from imagepiece_jax.data.normalize import normalize

    _, outputs = told
    model = subject.model({"name": "imagepiece"})
    variables, _ = subject.variables(model)
    pixels = normalize(lab.images.batches()[0]["image"][0], MEAN, STD)
    plain = jax.jit(model.apply)(variables, pixels)
    np.testing.assert_allclose(plain.logits, outputs.logits[:12], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(plain.results, outputs.results, strict=True):
        assert (ours.dest == theirs.dest[:12]).all()


@pytest.mark.slow
def test_overlap_of_a_model(lab, subject):
    """ToMe's grows with k; ImagePiece's with the top 70 % is nothing."""
    tome = overlap.overlaps(lab, subject, TOME)
    values = [tome[f"src {k}"][0] for k in (15, 20, 30, 70)]
    assert values == sorted(values) and 0 < values[-1] <= 100
    ours = overlap.overlaps(lab, subject, {"name": "imagepiece"})
    assert [ours[f"{kind} 70"][:3] for kind in overlap.KINDS] == [[0, 0, 0]] * 2


@pytest.mark.slow
def test_similarity_of_a_model(lab, subject):
    found = similarity.first_and_last(lab, subject, TOME)
    for at in similarity.ENDS:
        assert -1 <= found[f"lowest {at}"][0] <= found[f"all {at}"][0] <= 1
    gap = found["lowest last"][0] - found["lowest first"][0]
    assert found["gap"][0] == pytest.approx(gap)


def test_lowest_one_percent():
    values = np.random.default_rng(0).permutation(np.arange(300.0))
    assert similarity.lowest_count(300) == 3 and similarity.lowest(values) == 1.0
    assert similarity.lowest_count(20) == 1 and similarity.lowest_count(50000) == 500


ROWS = (DENSE, Row("ToMe", TOME), Row("ImagePiece", {"name": "imagepiece"}, "conv"))


def test_a_table_measures_what_it_can_and_leaves_the_rest_blank(lab):
    found = rows.measure(lab, ROWS)
    printed = {"ToMe": (79.36, 3806.1), "ImagePiece": (80.22, 3891.9)}
    text = rows.table(ROWS, found, printed, "DeiT-S")
    head, _, dense, tome, imagepiece = text.split("\n")
    assert "acc1, % (DeiT-S, ImageNet-1k, published)" in head
    assert "| DeiT |  |  | as trained |" in dense
    assert "| ToMe | 79.36 | 3806.1 | off-the-shelf |" in tome
    assert imagepiece.count("not measured") == 6 and "| none |" in imagepiece
    assert "within noise" in tome and "within noise" not in dense
    fitted = dataclasses.replace(found["ToMe"], reduction=TOME | {"r": 5})
    assert "| ToMe (r=5) | 79.36" in rows.table(
        ROWS[1:2], found | {"ToMe": fitted}, {"ToMe": (79.36, None)}, ""
    )
    assert "ImagePiece" not in rows.table(ROWS, found, {}, "")
    notes = rows.notes(lab, found)
    assert "There is no model here of: ImagePiece." in notes
    assert "One checkpoint for all rows" in notes and "24 images of digits" in notes
    assert "not to be compared" in notes


def test_published_figures_of_another_size_are_labelled_so(lab):
    """The tiny model has no published figures, so DeiT-S's stand in their column."""
    sizes = ("deit_s", "deit_ti")
    assert rows.printed_for(rows.measure(lab, ROWS), sizes)[1] == "DeiT-S"
    fields = {"name": "deit_ti", "embed_dim": 192, "depth": 12, "num_heads": 3}
    ours = {"DeiT": SimpleNamespace(subject=SimpleNamespace(fields=fields))}
    printed, whose = rows.printed_for(ours, sizes)
    assert whose == "DeiT-Ti" and printed["ImagePiece"] == (72.61, 9450.2)
    assert rows.printed_for(ours, sizes[:1])[1] == "DeiT-S"


@pytest.mark.slow
def test_untrained_selectors_are_called_so(lab):
    row = Row("DynamicViT", {"name": "dynamicvit", "blocks": (1,)})
    found = rows.measure(lab, (row,))
    assert "off-the-shelf, untrained selectors" in rows.table((row,), found, {}, "")
    assert "Untrained selectors" in rows.notes(lab, found)


def test_no_model_at_all_is_a_mistake(lab, subject):
    fields = subject.fields | {"stem": "conv"}
    conv = pretrained.Pretrained(subject.path, fields, subject.reduction)
    lonely = small_lab.lab(lab.out / "none", trained=(conv,))
    with pytest.raises(InputError, match="none of the models of this table is there"):
        rows.measure(lonely, ROWS[:2])
    lonely.points.close()


@pytest.mark.slow
def test_runs_of_several_seeds_are_paired_with_their_own_dense(tmp_path, lab):
    """Two dense models and two with ToMe's reduction, seeds 0 and 1."""
    dense = [small_lab.subject(tmp_path, seed) for seed in (0, 1)]
    kept = settings.completed(TOME)
    reduced = [dataclasses.replace(d, reduction=kept) for d in dense]
    several = small_lab.lab(tmp_path / "out", trained=(*dense, *reduced))
    found = rows.measure(several, (Row("ToMe", TOME),))["ToMe"]
    several.points.close()
    assert len(found.answers) == len(found.bases) == 2
    text = rows.table((found.row,), {"ToMe": found, "DeiT": found}, {}, "")
    shown = " ".join(f"{answers['acc1']:.1f}" for answers in found.answers)
    assert "acc1 by seed" in text and f"| {shown} |" in text
    means = [
        np.mean([a.right for a in answers]) for answers in (found.answers, found.bases)
    ]
    assert found.difference.value == pytest.approx(100 * (means[0] - means[1]))
    assert found.subject.use(found.reduction) == "as trained"


@pytest.mark.slow
def test_speed_is_against_the_dense_model_in_turns(tmp_path, subject):
    timed = small_lab.lab(tmp_path, subject=subject, timed=True, speed_batch=2)
    found = timed.speed(subject, TOME)
    assert timed.speed(subject, TOME) == found
    timed.points.close()
    assert found["ratio_min"] <= found["ratio"] <= found["ratio_max"]
    assert found["ratio"] == pytest.approx(found["dense_ms"] / found["ms"], rel=1e-6)
    assert (tmp_path / "points.jsonl").read_text().count("\n") == 1
