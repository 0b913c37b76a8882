"""Short fine-tunings: matched in cost, from the same start, compared by seed."""

import dataclasses
import itertools
import types

import pytest

from configs import quickstart
from experiments import models
from experiments.models import Finetuner, reduction_label, with_cost
from experiments.paper_tables import DENSE, TableRow, measure_rows, rows_table
from imagepiece_jax.data.sources import digits
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.reduction import Reduction
from tests.helpers import small_runs, tiny_paper

EVIT = "evit:keep_rate=0.5:blocks=(1,)"


@pytest.fixture
def config(monkeypatch):
    """One epoch of two steps for the tiny model, on a tenth of the digits."""
    pixels, labels = digits.read_digits()
    monkeypatch.setattr(digits, "read_digits", lambda: (pixels[:180], labels[:180]))
    config = quickstart.get_config()
    config.model.stem = "patch"
    config.epochs = 1
    config.batch_size = 70
    for name, value in (tiny_paper.SIZE | {"mlp_ratio": 2.0}).items():
        config.model[name] = value
    config.warmup_epochs = 0.0
    return config


@pytest.fixture
def trained(monkeypatch):
    """Configs of a Finetuner's runs by name; none is trained."""
    configs = {}

    def train_run(config, workdir):
        configs[workdir.name] = config
        origin = types.SimpleNamespace(path=workdir)
        return types.SimpleNamespace(origin=origin, reduction=None)

    monkeypatch.setattr(models, "train_run", train_run)
    return configs


def finetuner(tmp_path, config):
    pretrained = tiny_paper.pretrained(tmp_path, depth=config.model.depth)
    return Finetuner(config, pretrained, "digits", tmp_path / "small", [0, 1])


def test_matching_changes_all_but_dense_and_reference(tmp_path, config, trained):
    maker = finetuner(tmp_path, config)
    for reduction in (None, models.REFERENCE):
        maker.find(reduction, "patch", False)
    maker.find(EVIT, "conv", True)
    names = [name for name in trained if not name.startswith("start")]
    labels = ["none_patch", "imagepiece_patch", f"{reduction_label(EVIT)}_conv"]
    names_by_label = ([f"{name}_seed0", f"{name}_seed1"] for name in labels)
    assert names == [*itertools.chain(*names_by_label)]
    assert maker.find(EVIT, "conv", False) == []
    maker.find(EVIT, "patch", False)
    fitted = Reduction.read(trained[list(trained)[-1]].reduction).method
    assert fitted.keep_rate != Reduction.read(EVIT).method.keep_rate
    assert fitted.blocks == (1,)
    assert fitted.keep_rate == maker.match_cost(Reduction.read(EVIT)).method.keep_rate
    matched, reference = map(maker.pretrained.reduced_model, (fitted, models.REFERENCE))
    assert model_macs(matched) == pytest.approx(model_macs(reference), rel=0.1)


def test_configs_of_runs_differ_as_declared(tmp_path, config, trained):
    """The teacher is the dense run of the same seed; only selectors are fresh."""
    maker = finetuner(tmp_path, config)
    maker.seeds = [1]
    maker.find("dynamicvit:blocks=(1,)", "patch", True)
    maker.seeds = [0]
    maker.find("tome:r=4:prop_attn=False", "conv", True)
    start, learned, conv_start, tome = trained.values()
    assert (start.reduction, start.init.fresh, start.seed) == ("none", (), 1)
    assert start.init.weights == str(maker.pretrained.origin.path)
    teacher = str(tmp_path / "small" / "start_patch_seed1")
    assert learned.init.weights == learned.teacher.weights == teacher
    assert learned.init.fresh == ("reducer",)
    method = Reduction.read(learned.reduction).method
    assert (method.backbone_lr, method.frozen_epochs) == (1.0, 0.0)
    assert conv_start.init.fresh == ("patch_embed",)
    assert tome.reduction == "tome:r=4:prop_attn=False"
    assert (tome.init.fresh, tome.teacher.weights) == ((), "")
    assert tome.eval_every_epochs == tome.epochs


def test_another_class_name_makes_the_head_fresh(tmp_path, config, trained):
    maker = finetuner(tmp_path, config)
    vit = maker.pretrained
    names = (*"012345678", "ten")
    maker.pretrained = dataclasses.replace(vit, class_names=names)
    maker.find(None, "patch", True)
    assert trained["start_patch_seed0"].init.fresh == ("head",)
    start = maker.folder / "start_patch_seed0"
    assert trained["none_patch_seed0"].init.weights == str(start)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_begun")
def test_methods_are_trained_once_and_compared(tmp_path, config, capfd, monkeypatch):
    small_runs.compile_once(monkeypatch)
    config.model.depth = 1
    evit = EVIT.replace("blocks=(1,)", "blocks=(0,)")
    maker = finetuner(tmp_path, config)
    maker.seeds = [1]
    rows = (DENSE, TableRow("EViT", evit))
    with tiny_paper.study(tmp_path / "out", models=maker) as study:
        results = measure_rows(study, rows, by_stem=True)
    assert len(results["EViT"].results) == 1
    names = sorted(path.name for path in (tmp_path / "small").iterdir())
    expected = ["none", reduction_label(evit), "start"]
    assert names == sorted(f"{name}_patch_seed1" for name in expected)
    assert "| EViT |  | as trained |" in rows_table(rows, results, {}, "")
    capfd.readouterr()
    ((repeated, _),) = maker.find(evit, "patch", True)
    assert capfd.readouterr().out.count("this run is complete") == 2
    assert repeated.digest == results["EViT"].pretrained.digest


@pytest.mark.parametrize("name", sorted({*METHODS} - {"none"}))
def test_a_cost_replaces_a_methods_counts(name):
    expected = Reduction.read(f"{name}:macs=0.5")
    amounts = [f"counts={(9,) * 12}"]
    if field := METHODS[name].ratio_field:
        amounts.append(f"{field}=1")
    for fields in amounts:
        assert with_cost(Reduction.read(f"{name}:{fields}"), 0.5) == expected
    schedule = Reduction.read(f"{name}:macs=0.9:counts=proportional-1")
    assert with_cost(schedule, 0.5).method.counts == "proportional-1"
