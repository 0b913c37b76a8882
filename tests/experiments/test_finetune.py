"""Short fine-tunings: matched, started alike, gone on with, compared by seed."""

import pytest

from configs import quickstart
from imagepiece_jax.experiments import finetune, rows
from imagepiece_jax.experiments.finetune import Small, label
from imagepiece_jax.experiments.rows import DENSE, Row
from imagepiece_jax.models import pretrained
from imagepiece_jax.reduction import settings
from tests.experiments import small_lab

EVIT = {"name": "evit", "keep_rate": 0.5, "blocks": (1,)}


@pytest.fixture
def config():
    """One epoch of two steps for the tiny model."""
    config = quickstart.get_config()
    config.model.stem, config.epochs, config.batch_size = "patch", 1, 700
    for name, value in (small_lab.SIZE | {"mlp_ratio": 2.0}).items():
        config.model[name] = value
    config.warmup_epochs = 0.0
    return config


def made(tmp_path, config):
    given = small_lab.subject(tmp_path)
    return Small(config, given, "digits", tmp_path / "small", [0, 1])


def test_folders_are_named_by_their_reduction():
    assert label(EVIT) == "evit_keep_rate=0.5_blocks=1,"
    assert label(settings.DENSE) == "dense"


def test_matching_leaves_the_reference_and_the_dense_model_alone(
    tmp_path, config, monkeypatch
):
    maker, asked = made(tmp_path, config), []
    monkeypatch.setattr(maker, "_trained", lambda *given: asked.append(given))
    maker.runs(settings.DENSE, "patch", True)
    maker.runs(finetune.REFERENCE, "patch", True)
    maker.runs(EVIT, "patch", False)
    assert [given[0] for given in asked[::2]] == [
        settings.DENSE,
        finetune.REFERENCE,
        EVIT,
    ]
    maker.runs(EVIT, "conv", True)
    fitted = asked[-1][0]
    assert fitted != EVIT and fitted["blocks"] == (1,)
    cost = maker._dense.gmacs
    step = abs(cost(fitted | {"keep_rate": fitted["keep_rate"] + 0.05}) - cost(fitted))
    assert abs(cost(fitted) - cost(finetune.REFERENCE)) <= step
    assert [given[1:] for given in asked[-2:]] == [("conv", 0), ("conv", 1)]


def test_a_method_that_no_rate_makes_fit_has_no_runs(tmp_path, config, capsys):
    maker = made(tmp_path, config)
    assert maker.runs({"name": "evit", "blocks": (7,)}, "patch", True) == []
    assert (
        "evit_blocks=7, is left out: no rate of 'evit' fits" in capsys.readouterr().out
    )
    assert not (tmp_path / "small").exists()


def test_a_run_is_told_all_that_differs(tmp_path, config, monkeypatch):
    """The teacher is the dense run of the same seed; only selectors are fresh."""
    maker, configs = made(tmp_path, config), {}

    def run(config, name):
        configs[name] = config
        return pretrained.Pretrained(
            tmp_path / name, maker.given.fields, settings.DENSE
        )

    monkeypatch.setattr(maker, "_run", run)
    maker._trained({"name": "dynamicvit", "blocks": (1,)}, "patch", 1)
    maker._trained({"name": "tome", "r": 4, "prop_attn": False}, "conv", 0)
    start, learned, conv_start, tome = configs.values()
    assert start.reduction.name == "none" and start.init.fresh == ()
    assert start.init.weights == str(maker.given.path) and start.seed == 1
    assert (
        learned.init.weights
        == learned.teacher.weights
        == str(tmp_path / "start_patch_seed1")
    )
    assert learned.init.fresh == ("reducer",) and learned.reduction.backbone_lr == 1.0
    assert learned.reduction.frozen_epochs == 0.0
    assert conv_start.init.fresh == ("patch_embed",) and tome.model.prop_attn is False
    assert tome.init.fresh == () and tome.teacher.weights == ""
    assert tome.eval_every_epochs == tome.epochs and not tome.init.evaluate


@pytest.mark.slow
def test_methods_are_trained_once_and_compared(tmp_path, config, capfd):
    maker = made(tmp_path, config)
    maker.seeds = [1]
    lab = small_lab.lab(tmp_path / "out", small=maker)
    compared = (DENSE, Row("EViT", EVIT), Row("EViT, conv", EVIT, "conv"))
    found = rows.measure(lab, compared, matched=False)
    assert found["EViT, conv"] is None and len(found["EViT"].answers) == 1
    names = sorted(path.name for path in (tmp_path / "small").iterdir())
    assert names == ["dense_patch_seed1", f"{label(EVIT)}_patch_seed1"] + [
        "start_patch_seed1"
    ]
    assert found["EViT"].facts["tokens"] == 33
    assert found["EViT"].subject.seed == 1
    assert "| EViT |  | as trained |" in rows.table(compared, found, {}, "")
    assert "1 epochs dense, then as many" in rows.form(lab)
    capfd.readouterr()
    (again,) = maker.runs(EVIT, "patch", False)
    assert capfd.readouterr().out.count("this run is complete") == 2
    assert again.digest == found["EViT"].subject.digest
    lab.points.close()
