import pytest

from configs import base, deit_s_evit
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.models.config import IMAGENET_MEAN
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.training import data, report
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.weights.folder_files import RUN_FORMAT
from tests.helpers.named_models import config
from tests.helpers.refused_calls import refused
from tests.helpers.small_runs import quickstart_config

TINY = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "image_size": 48}


def make_run(*groups, **fields):
    return RunConfig.from_config(quickstart_config(*groups, **fields))


WRONG = {  # a wrong value per kind of check
    "keep_every_steps": -1,
    "lr": float("nan"),
    "seed": 2**32,
    "distill.kind": "warm",
    "betas": (0.9, 1.0),
    "data.area": (0.5, 0.4),
    "data.eval_crop": 1.5,
    "reduction": "tome:r=-1",
    "image_size": 17,
}


@pytest.mark.parametrize("field, value", WRONG.items())
def test_a_value_out_of_range_is_named(field, value):
    with refused("config", f"{field.rpartition('.')[2]} "):
        make_run(**{field: value})


def test_images_that_do_not_open_are_named_with_their_field():
    run = make_run(**{"data.name": "nosuch"})
    with refused("config.data: 'nosuch'"):
        data.open_images(run, "train")


def test_a_saved_config_has_format_counts_and_normalization():
    run = make_run(reduction="tome:macs=0.7").with_counts()
    run = run.fill_preprocessing(run.vit_config)
    written = run.to_dict()
    assert written["format"] == RUN_FORMAT
    assert "macs" not in written["reduction"]
    assert written["model"]["mean"] == IMAGENET_MEAN
    assert RunConfig.from_config(written) == run


def test_empty_image_fields_come_from_the_model():
    crop = {"crop": 0.9, "crop_mode": "squash", "interpolation": "bilinear"}
    theirs = config(None, **TINY, mean=(0.4,) * 3, std=(0.2,) * 3, **crop)
    fields = {"image_size": 48, "data.resize": "deit"}
    run = make_run(fields).fill_preprocessing(theirs)
    assert (run.vit_config.mean, run.vit_config.std) == (theirs.mean, theirs.std)
    assert run.vit_config.preprocessing == theirs.preprocessing
    assert run.data.eval_crop == 0.9
    typed = {"model.mean": (0.1,) * 3, "model.std": (0.3,) * 3, "data.eval_crop": 0.8}
    filled = make_run(fields | typed).fill_preprocessing(theirs).vit_config
    assert (filled.mean, filled.std) == ((0.1,) * 3, (0.3,) * 3)
    assert filled.preprocessing == Preprocessing(48, crop=0.8)
    squashed = make_run(fields, **{"data.eval_crop_mode": "squash"})
    with refused("eval_crop_mode is 'squash'", "eval_crop"):
        squashed.fill_preprocessing(theirs)


def test_a_models_name_gives_normalization_but_no_crop():
    fields = {"model.name": "vit_base_patch16_224.augreg_in1k", "image_size": 224}
    fields |= {"model.patch_size": 16, "data.resize": "deit"}
    model = make_run(fields).vit_config
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


def test_a_runs_flop_count_every_epoch_and_the_teacher():
    deit = RunConfig.from_config(base.get_config())
    flop = report.count_training_flop(deit, 1_281_167)
    assert flop == pytest.approx(300 * 1251 * 1024 * 3 * 2 * 4.6e9, rel=1e-3)
    warm_up = "evit:blocks=(1,2,3):rate_warmup_start=1:rate_warmup_epochs=2"
    evit = make_run(epochs=4, reduction=warm_up)
    macs = [model_macs(evit.create_train_model(epoch)) for epoch in range(4)]
    assert macs == sorted(macs, reverse=True) and len(set(macs)) == 3
    assert report.count_training_flop(evit, 640) == 2 * 10 * 64 * 3 * sum(macs)
    taught_run = make_run(epochs=4, reduction=warm_up, **{"distill.kind": "soft"})
    for known, teacher_macs in ((None, macs[0]), (10, 10)):
        flop = report.count_training_flop(taught_run, 640, known)
        assert flop == 2 * 10 * 64 * (3 * sum(macs) + 4 * teacher_macs)


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixing_needs_pairs(options):
    def check_run(**fields):
        run = make_run(fields, batch_size=6, grad_accum_steps=2)
        data.check_training(run, Placement(accumulation=2))

    with refused("config.batch_size makes odd micro-batches"):
        check_run(**options)
    check_run()
    check_run(**options, mixup_prob=0.0)
