"""Which model is it? Told by a file's shapes, a run's config, or --config."""

import json

import numpy as np
import pytest

from configs import quickstart
from imagepiece_jax.errors import InputError
from imagepiece_jax.experiments import subjects
from imagepiece_jax.models import convert, registry, summary
from imagepiece_jax.training import from_config
from tests.experiments import tiny_context
from tests.models.tiny import fill


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of a model whose heads have 64 channels, so that shapes tell it."""
    fields = dict(patch_size=2, embed_dim=64, depth=2, num_heads=1)
    model = registry.create_model("vit_mini", image_size=8, num_classes=3, **fields)
    path = tmp_path_factory.mktemp("weights") / "tiny.npz"
    np.savez(path, **convert.to_timm(fill(summary.shapes(model, 8))))
    return path


def test_a_file_tells_its_model(file):
    found = subjects.of(file, dtype="float32")
    model = found.model()
    assert (model.embed_dim, len(model.plan), model.patch_size) == (64, 2, 2)
    assert (found.image_size, model.num_classes, found.stem) == (8, 3, "patch")
    variables, untrained = found.variables(model)
    assert not untrained and variables["params"]["head"]["bias"].shape == (3,)


def test_a_config_tells_what_shapes_cannot(tmp_path):
    made = tiny_context.pretrained(tmp_path)  # heads of 4 channels
    with pytest.raises(InputError, match="name the model by --config"):
        subjects.of(made.path)
    config = quickstart.get_config()
    config.model.stem = "patch"
    config.reduction.merge_blocks, config.reduction.prune_blocks = (0, 1), (2,)
    for name, value in (tiny_context.SIZE | {"mlp_ratio": 2.0}).items():
        config.model[name] = value
    found = subjects.of(made.path, config)
    assert found.model(subjects.DENSE) == made.model()
    given = {k: v for k, v in config.reduction.to_dict().items() if v is not None}
    assert found.use(given) == "as trained"


def run_folder(path, config):
    path.mkdir(parents=True)
    text = json.dumps(config.to_dict())
    (path / "config.json").write_text(text)


def test_a_run_tells_its_model_and_what_it_was_trained_with(tmp_path):
    config = quickstart.get_config()
    config.seed = 7
    run_folder(tmp_path / "b", config)
    config.model.prop_attn = True
    run_folder(tmp_path / "a", config)
    first, second = subjects.runs(tmp_path)
    assert second.seed == 7 and second.model() == from_config.model(
        quickstart.get_config()
    )
    assert first.reduction["prop_attn"] is True
    reduction = quickstart.get_config().reduction.to_dict()
    given = {k: v for k, v in reduction.items() if v is not None}
    assert second.use(given) == "as trained"
    assert second.use(given | {"keep_rate": 0.5}) == "off-the-shelf"
    assert first.use(given) == second.use(subjects.DENSE) == "off-the-shelf"


def test_fields_are_completed_by_the_methods_defaults():
    short = subjects.completed({"name": "evit"})
    assert short == subjects.completed(
        {"name": "evit", "keep_rate": 0.7, "blocks": [3, 6, 9], "rate_warmup_epochs": 9}
    )
    assert subjects.completed({"name": "tome"})["prop_attn"] is True
    assert subjects.completed(None) == {"name": "none", "prop_attn": False}


@pytest.mark.slow
def test_selectors_that_the_weights_lack_are_fresh_and_said_to_be(tmp_path):
    made = tiny_context.pretrained(tmp_path)
    learned = made.model({"name": "dynamicvit", "blocks": (1,)})
    variables, untrained = made.variables(learned)
    assert untrained and "reducer_1" in variables["params"]
    assert made.untrained({"name": "dynamicvit", "blocks": (1,)})
    assert not made.untrained({"name": "tome", "r": 4})
    for name, value in made.variables(made.model())[0]["params"].items():
        assert variables["params"][name] is value


def test_other_weights_have_another_digest(tmp_path):
    one, other = (tiny_context.pretrained(tmp_path, seed) for seed in (0, 1))
    assert one.digest != other.digest and len(one.digest) == 16
    assert one.digest == tiny_context.pretrained(tmp_path, 0).digest


def test_weights_of_another_stem_are_a_mistake(tmp_path):
    made = tiny_context.pretrained(tmp_path)
    fields = made.fields | {"stem": "conv"}
    conv = subjects.Subject(made.path, fields, made.reduction).model()
    with pytest.raises(InputError, match="do not fit a model with stem 'conv'"):
        made.variables(conv)


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda folder: subjects.of(folder), "a folder without a run's config.json"),
        (lambda folder: subjects.runs(folder), "--runs .* holds no run"),
    ],
)
def test_a_folder_without_runs_is_a_mistake(tmp_path, make, told):
    with pytest.raises(InputError, match=told):
        make(tmp_path)
