"""The public API, from weights on disk to a model: load."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import predictor as api
from imagepiece_jax.models import convert
from imagepiece_jax.models.vit import MEAN, STD
from imagepiece_jax.pretrained import runs
from tests.command import start
from tests.models import tiny
from tests.runs import ROOT

HEADS = {"name": "vit_mini", "num_heads": tiny.HEADS}
GIVEN = HEADS | {"mean": MEAN, "std": STD}  # what tensors leave open
NAMES = [f"class {i}" for i in range(tiny.CLASSES)]


def changed(weights_file, *names, **others):
    """The tensors of a file but for `names`, and `others`."""
    with np.load(weights_file) as tensors:
        return {k: v for k, v in tensors.items() if k not in names} | others


def test_the_package_imports_nothing_until_it_is_used():
    code = (
        "import sys, imagepiece_jax as i; assert 'jax' not in sys.modules; "
        "assert set(i.__all__) <= set(dir(i)); i.create_model; print('jax' in "
        "sys.modules, 'orbax' in sys.modules, 'ml_collections' in sys.modules)"
    )
    ended = start("-c", code, PYTHONPATH=str(ROOT))
    assert (ended.out, ended.err) == ("True False False\n", "")


def test_an_unknown_name_is_an_attribute_error():
    assert imagepiece_jax.Predictor is api.Predictor
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = imagepiece_jax.lode


def test_load_infers_the_model_from_its_tensors(trained, weights_file):
    model, variables = tiny.pair(imagepiece_jax.load(weights_file, **GIVEN))
    assert model == trained[0]
    np.testing.assert_array_equal(
        variables["params"]["blocks_0"]["attn"]["k"]["kernel"],
        trained[1]["params"]["blocks_0"]["attn"]["k"]["kernel"],
    )


def test_load_takes_a_reduction_and_another_size(weights_file):
    reduction = {"name": "tome", "r": 4}
    model, variables = tiny.pair(
        imagepiece_jax.load(
            weights_file,
            reduction=reduction,
            image_size=32,
            gelu="tanh",
            dtype=jnp.bfloat16,
            **GIVEN,
        )
    )
    assert model.dtype == jnp.bfloat16
    assert [model.plan[0].attn_tokens, model.plan[0].mlp_tokens] == [65, 61]
    assert variables["params"]["pos_embed"].shape == (1, 65, tiny.WIDTH)
    assert model.arch.gelu == "tanh"


def test_names_of_classes_come_with_the_model(trained, weights_file, pictures):
    """They change no program; `labels` are before them, and indices where none is."""
    names = [*NAMES[:-1], None]
    vit = imagepiece_jax.load(weights_file, class_names=names, **GIVEN)
    assert vit.class_names == tuple(names) and vit.model == trained[0]
    assert repr(vit) == "<Pretrained ViT: dense, images of 20x20, 7 classes>"
    options = {"compiler_options": {"xla_backend_optimization_level": 0}}
    options |= {"top": tiny.CLASSES, "batch_size": 1, "dtype": jnp.float32}
    predict = imagepiece_jax.Predictor(vit, **options)
    by_index = {found.index: found.label for found in predict(pictures[0])}
    assert by_index == dict(enumerate(NAMES[:-1])) | {tiny.CLASSES - 1: 6}
    with pytest.raises(InputError, match="class_names has length 2; allowed: .* 7 cl"):
        imagepiece_jax.load(weights_file, class_names=("a", "b"), **GIVEN)


def test_load_reads_the_config_of_a_run(trained, weights_file, tmp_path, monkeypatch):
    """The folder's weights come from the checkpoint library, tested elsewhere."""
    size = {"patch_size": 4, "embed_dim": 30, "depth": 1, "num_heads": 3}
    config = {
        "image_size": tiny.SIDE,
        "num_classes": tiny.CLASSES,
        "model": {"name": "vit_mini", "stem": "patch", **size},
        "reduction": {"name": "evit", "keep_rate": 0.6, "blocks": [0]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = []

    def read_checkpoint(path, checkpoint, averaged):
        asked.append((path, checkpoint, averaged))
        return convert.to_timm(trained[1])

    monkeypatch.setattr(runs, "read_checkpoint", read_checkpoint)
    model = imagepiece_jax.load(tmp_path, checkpoint="latest", reduction=None).model
    assert model.plan[0].mlp_tokens == 16  # 0.6 * 25, and the class token
    dense = imagepiece_jax.load(tmp_path, reduction={"name": "none"}).model
    assert dense == trained[0]
    assert asked == [(tmp_path, "latest", False), (tmp_path, "best", False)]


@pytest.mark.parametrize(
    "names, others, options, message",
    [
        (["pos_embed"], {}, HEADS, "tensor pos_embed is missing; allowed: plain"),
        ([], {"pos_embed": np.zeros(3)}, HEADS, r"pos_embed is of \(3,\); .* is 3$"),
        ([], {"pos_embed": np.zeros((1, 24, 30))}, HEADS, "has 24 rows; allowed: a"),
        ([], {}, {}, "num_heads and mean, .* are in no tensor; place its config"),
        (
            [],
            {},
            {"name": "deit_s"},
            "name is 'deit_s', 384 wide, and these tensors are 30; .* or give num",
        ),
        ([], {"norm.weight": np.ones(29)}, GIVEN, r"norm.weight has shape \(29,\)"),
        ([], {"extra": np.zeros(3)}, GIVEN, "tensor extra of shape .* is left over"),
    ],
)
def test_weights_of_other_models(
    weights_file, tmp_path, names, others, options, message
):
    path = tmp_path / "w.npz"
    np.savez(path, **changed(weights_file, *names, **others))
    with pytest.raises(InputError, match=message) as caught:
        imagepiece_jax.load(path, **options)
    assert str(caught.value).startswith(f"weights file {path}: ")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_size": (20, 22)}, r"image_size is \(20, 22\); allowed: mul"),
        ({"image_size": "20"}, "image_size is '20'; allowed: multiples of"),
        ({"image_size": 20.0}, "image_size is 20.0; allowed: multiples of"),
        ({"reduction": {"r": 8}}, "reduction is {'r': 8}, which has no name; the name"),
        ({"dtype": jnp.int32}, "dtype is .*int32.*; allowed: float32,"),
        ({"depht": 2}, r"depht is not a field; did you mean depth\?"),
        ({"reductoin": {}}, r"reductoin is not a field; did you mean reduction\?"),
        ({"zebra": 2}, "zebra is not a field; allowed: reduction, checkpoint, "),
        ({"num_heads": 4}, "num_heads is 4; allowed: divisors of"),
        ({"num_heads": 2.5}, "num_heads is 2.5; allowed: whole num"),
        ({"num_classes": -1}, "num_classes is -1; allowed: whole numbers fr"),
        ({"depth": 2}, "depth is 2, but weights file .* has 1; allowed: 1"),
        ({"mean": (0.5, 0.5)}, r"mean is \(0.5, 0.5\); allowed: three"),
        ({"mean": (123.7,) * 3}, r"mean is .* from 0 to 1, of pixels in "),
        ({"std": None}, "mean is given, std is not"),
    ],
)
def test_fields_that_load_refuses(weights_file, options, message):
    with pytest.raises(InputError, match=message):
        imagepiece_jax.load(weights_file, **(GIVEN | options))


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match="is a folder without config.json"):
        imagepiece_jax.load(tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="weights .*w.npz: no such file or folder"):
        imagepiece_jax.load(tmp_path / "w.npz")
