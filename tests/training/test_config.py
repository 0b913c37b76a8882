import pytest

from configs import deit_s_evit
from imagepiece_jax.data.preprocessing import NAME_IN_CONFIG, Preprocessing
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from imagepiece_jax.reduction.reduction import Reduction
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.weights.folder_files import RUN_FORMAT as RUN_FORMAT
from tests.helpers.named_models import config
from tests.helpers.refused_calls import refused
from tests.helpers.small_runs import quickstart_config

TINY = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "image_size": 48}

WRONG = {  # a wrong value per kind of check
    "keep_every_steps": -1,
    "data.repeats": 0,
    "weight_decay": -1.0,
    "ema_decay": 1.5,
    "lr": float("nan"),
    "seed": 2**32,
    "lr_offset": 2,
    "distill.kind": "warm",
    "augment.magnitude": 10.5,
    "betas": (0.9, 1.0),
    "data.area": (0.5, 0.4),
    "data.eval_crop": 1.5,
    "reduction": "tome:r=-1",
    "model.stem": "wide",
    "image_size": 17,
}


@pytest.mark.parametrize("field, value", WRONG.items())
def test_a_value_out_of_range_is_named(field, value):
    config = quickstart_config(**{field: value})
    with refused("config", f"{field.rpartition('.')[2]} "):
        RunConfig.from_config(config)


def test_a_saved_config_has_format_counts_and_normalization():
    run = RunConfig.from_config(
        quickstart_config(reduction="tome:macs=0.7")
    ).with_counts()
    run = run.fill_preprocessing(run.vit_config)
    written = run.to_dict()
    assert written["format"] == RUN_FORMAT
    assert "macs" not in written["reduction"]
    assert Reduction.read(written["reduction"]) == run.reduction
    assert written["model"]["mean"] == IMAGENET_MEAN
    assert written["model"]["std"] == IMAGENET_STD
    assert RunConfig.from_config(written) == run


OWN = {"mean": (0.4,) * 3, "std": (0.2,) * 3}  # other than ImageNet's
SHOWN = {"crop": 0.9, "crop_mode": "squash", "interpolation": "bilinear"}


def image_fields(run):
    """A run's mean, std and evaluation crop. Its model and its data agree."""
    model = run.vit_config
    crop = {name: getattr(model.preprocessing, name) for name in SHOWN}
    assert crop == {name: getattr(run.data, NAME_IN_CONFIG[name]) for name in SHOWN}
    return {"mean": model.mean, "std": model.std} | crop


def test_empty_image_fields_come_from_the_model():
    theirs = config(None, **TINY, **OWN, **SHOWN)
    fields = {"image_size": 48, "data.resize": "deit"}
    run = RunConfig.from_config(quickstart_config(fields)).fill_preprocessing(theirs)
    assert image_fields(run) == OWN | SHOWN
    assert image_fields(RunConfig.from_config(run.to_dict())) == OWN | SHOWN
    typed = {"model.mean": (0.1,) * 3, "model.std": (0.3,) * 3, "data.eval_crop": 0.8}
    run = RunConfig.from_config(quickstart_config(fields | typed))
    run = run.fill_preprocessing(theirs)
    expected = {"mean": (0.1,) * 3, "std": (0.3,) * 3, "crop": 0.8}
    assert image_fields(run).items() >= (expected | {"crop_mode": "center"}).items()
    fields["data.eval_crop_mode"] = "squash"
    squashed = RunConfig.from_config(quickstart_config(fields))
    with refused("eval_crop_mode is 'squash'", "eval_crop"):
        squashed.fill_preprocessing(theirs)


def test_a_models_name_gives_normalization_but_no_crop():
    fields = {"model.name": "vit_base_patch16_224.augreg_in1k", "image_size": 224}
    fields |= {"model.patch_size": 16, "data.resize": "deit"}
    model = RunConfig.from_config(quickstart_config(fields)).vit_config
    assert (model.mean, model.std) == ((0.5,) * 3, (0.5,) * 3)
    assert model.preprocessing == Preprocessing(224)


def test_an_epochs_model_has_its_keep_rate():
    config = deit_s_evit.get_config("deit_ti")

    def last_tokens(epoch):
        model = RunConfig.from_config(config).create_train_model(epoch)
        return model.plan[-1].mlp_tokens

    # 196 * .85 = 166.6, 167 * .85 = 141.95, 142 * .85 = 120.7, each rounded up.
    assert [last_tokens(epoch) for epoch in (0, 60, 110)] == [197, 122, 69]
    config.reduction = "evit"
    assert last_tokens(0) == 69
