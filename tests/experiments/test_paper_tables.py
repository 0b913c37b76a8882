import jax
import numpy as np
import pytest

from experiments import analysis, merges, paper_tables, published
from experiments.models import TrainedRuns
from experiments.paper_tables import DENSE, TableRow
from imagepiece_jax.common.files import read_json_lines
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.evaluation.result_cache import POINTS_FILE_NAME
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers import oracles, tiny_paper

TOME = "tome:r=4"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return tiny_paper.pretrained(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def study(tmp_path_factory, pretrained):
    with tiny_paper.study(tmp_path_factory.mktemp("out"), pretrained) as study:
        yield study


def test_a_line_has_the_whole_setting(study, pretrained):
    study.evaluate(pretrained, TOME)
    *_, line = read_json_lines(study.out / POINTS_FILE_NAME)
    setting = line["setting"]
    assert setting["reduction"] == "tome:r=4:prop_attn=True"  # ToMe's published form
    assert setting["weights"] == pretrained.digest
    assert setting["digest"] == study.images.source.digest
    tokens = line["result"]["tokens_per_block"]
    assert tokens == [[65, 61], [61, 57], [57, 53], [53, 49]]


def slow_ratio(outputs, place, next_step, count):
    """Mean share, token by token, of merged tokens among the `count` most attended."""
    shares = []
    slots_of_images = np.asarray(outputs.results[place].slot_of_token)
    attention = np.asarray(outputs.reducer_inputs[next_step].cls_attn)
    for slots, scores in zip(slots_of_images, attention, strict=True):
        merged = [slot for slot in set(slots) if (slots == slot).sum() > 1]
        shares.append(np.mean(oracles.rank_by_score(scores)[merged] < count))
    return 100 * np.mean(shares)


@pytest.mark.slow
def test_attentive_ratios_equal_slow_counts(study, pretrained):
    model = merges.observe_reducers(pretrained.reduced_model("imagepiece"))
    batches = [batch["image"] for batch in study.images.read_batches()]
    pixels = normalize(np.concatenate(batches, axis=1)[0], IMAGENET_MEAN, IMAGENET_STD)
    outputs = jax.jit(model.apply)(pretrained.variables, pixels)
    ratios = analysis.attentive_ratios(study, pretrained, "imagepiece")
    assert list(ratios) == ["1", "2"]
    sites = {site.block: site for site in merges.list_sites(model)}
    for block, rule in ((1, "(a)"), (2, "(b)")):
        site = sites[block]
        previous = sites[block - 1]
        n = site.counts.n_in
        upper = n - int(0.3 * n + 1e-9)
        by_rule = site.counts.n_out if rule == "(b)" else upper
        figures = ratios[str(block)]
        assert figures["rule"].startswith(rule)
        for name, count in (("own", by_rule), ("candidates", upper)):
            slow = slow_ratio(outputs, previous.step, site.step, count)
            assert figures[name][0] == pytest.approx(slow, rel=1e-5)


ROWS = (DENSE, TableRow("ToMe", TOME), TableRow("ImagePiece", "imagepiece", "conv"))


def test_rows_without_a_model_are_blank(study):
    results = paper_tables.measure_rows(study, ROWS)
    printed = {"ToMe": (79.36, 3806.1), "ImagePiece": (80.22, 3891.9)}
    text = paper_tables.rows_table(ROWS, results, printed, "DeiT-S")
    _, _, dense, tome, imagepiece = text.split("\n")
    assert "| ToMe | 79.36 | 3806.1 | off-the-shelf |" in tome
    assert imagepiece.count("not measured") == 6
    assert "within noise" in tome and "within noise" not in dense


@pytest.mark.slow
def test_runs_are_paired_with_their_seeds_dense_run(tmp_path):
    dense = [tiny_paper.pretrained(tmp_path, seed, depth=2) for seed in (0, 1)]
    runs = TrainedRuns((*dense, *[vit.with_reduction(TOME) for vit in dense]))
    with tiny_paper.study(tmp_path / "out", models=runs) as several:
        measured = paper_tables.measure_rows(several, (TableRow("ToMe", TOME),))["ToMe"]
    assert len(measured.results) == len(measured.bases) == 2
    reduced = np.mean([answers.right for answers in measured.results])
    full = np.mean([answers.right for answers in measured.bases])
    assert measured.difference.value == pytest.approx(100 * (reduced - full))


def test_plans_leave_the_published_tokens():
    rows = {row.name: row for row in paper_tables.TABLE3}
    assert published.OUTPUT_TOKENS.keys() <= rows.keys()
    for name, count in published.OUTPUT_TOKENS.items():
        assert paper_tables.plan_tokens(rows[name]) == count
