"""One checkpoint under several reductions: models, variables, labels, costs."""

import numpy as np
import pytest

from configs import quickstart
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.spec import create_model
from imagepiece_jax.reduction.reduction import DENSE
from imagepiece_jax.reduction.sweep_text import parse_sweep
from imagepiece_jax.weights import layouts
from imagepiece_jax.weights.load import SavedWeights, load, load_as
from tests.models import tiny
from tests.models.test_published import same
from tests.weights.test_load import run_folder

SIZE = {"embed_dim": 64, "num_heads": 4, "depth": 2}
DYNAMICVIT = {"name": "dynamicvit", "blocks": (1,)}
PROPORTIONAL = {"model.prop_attn": True}
NARROW = {"embed_dim": 8, "num_heads": 2, "depth": 4, "mlp_ratio": 2.0}


@pytest.fixture(scope="module")
def variables():
    """Variables of a dense model."""
    return tiny.variables(tiny.model(**SIZE))


@pytest.fixture(scope="module")
def file(tmp_path_factory, variables):
    """Those as a weights file."""
    return tiny.write(tmp_path_factory.mktemp("weights") / "vit_mini.npz", variables)


@pytest.fixture(scope="module")
def weights(file):
    return load(file).analyzed()


def test_a_file_is_read_once(file, monkeypatch):
    reads = []
    read_file = layouts.read_state_dict

    def counted(path, *rest):
        reads.append(path)
        return read_file(path, *rest)

    monkeypatch.setattr(layouts, "read_state_dict", counted)
    weights = load(file).analyzed()
    for reduction in (DENSE, {"name": "tome", "r": 2}):
        weights.with_reduction(reduction)
    assert weights.digest and reads == [file]


def test_a_reduction_gives_a_model_with_the_weights_of_the_file(weights, variables):
    found = [weights, *map(weights.with_reduction, parse_sweep("tome:r=2,3"))]
    assert [v.label for v in found] == ["dense", "tome r=2", "tome r=3"]
    assert [v.model.plan[-1].mlp_tokens for v in found] == [26, 22, 20]
    assert found[0].gmacs > found[1].gmacs > found[2].gmacs
    assert found[1].model.prop_attn
    assert found[1].model.dtype == np.float32
    assert weights.image_size == tiny.SIDE
    for vit in found:
        assert not vit.untrained
        assert same(vit.variables, variables)


def test_selectors_that_the_weights_lack_are_fresh_and_reported(weights, variables):
    vit = weights.with_reduction(DYNAMICVIT, seed=0)
    assert vit.untrained and weights.lacks_selectors(DYNAMICVIT)
    assert not weights.lacks_selectors({"name": "tome", "r": 4})
    assert vit.label == "dynamicvit blocks=(1,) (untrained selectors)"
    found = dict(vit.variables["params"])
    assert found.pop("reducer_1")
    assert same(found, variables["params"])


def test_selectors_of_other_shapes_than_those_of_the_weights_are_fresh(tmp_path):
    """Those that fit are used: see tests/models/test_pretrained.py."""
    learned = tiny.variables(tiny.model(DYNAMICVIT, **SIZE), seed=3)
    tiny.write(tmp_path / "vit_mini.npz", learned)
    path = tmp_path / "vit_mini.npz"
    spvit = {"name": "spvit", "blocks": (1,)}
    spvit["keep_rates"] = (0.5,)
    for reduction, lacking in ((spvit, True), (DYNAMICVIT, False)):
        found = load_as(SavedWeights(path), reduction=reduction, seed=0)
        assert found.untrained == lacking
        assert found.lacks_selectors(spvit)
        assert not found.lacks_selectors(DYNAMICVIT)


def test_other_weights_have_another_digest(tmp_path, weights):
    other = tiny.variables(tiny.model(**SIZE), seed=1)
    path = tmp_path / "vit_mini.npz"
    tiny.write(path, other)
    digest = load(path).digest
    assert digest != weights.digest
    assert len(digest) == 16
    tiny.write(path, weights.variables)
    assert load(path).digest == weights.digest


def test_a_caller_has_what_shapes_leave_open(tmp_path):
    """Heads of 4 channels; and what the reduction makes of other figures."""
    fields = {"patch_size": 2, "num_classes": 10, "image_size": 16} | NARROW
    model = create_model("vit_mini", **fields)
    path = tmp_path / "w.npz"
    tiny.write(path, tiny.fill(tiny.shapes(model, 16)))
    with pytest.raises(InputError, match="place its config.json beside it, or give"):
        load(path)
    reduction = {"name": "imagepiece", "merge_blocks": (0, 1), "prune_blocks": (2,)}
    heads = NARROW["num_heads"]
    found = load(path, reduction, name="vit_mini", num_heads=heads).analyzed()
    assert found.model_with(DENSE) == model
    assert found.use(reduction) == "as trained"


def test_a_run_has_its_model_and_the_reduction_it_was_trained_with(tmp_path):

    def described(name, **changes):
        weights = SavedWeights(run_folder(tmp_path / name, **changes))
        return load_as(weights, abstract=True).analyzed()

    usual = described("usual", **{"seed": 7})
    other = described("other", **PROPORTIONAL)
    assert usual.source.seed == 7
    own = RunConfig.from_config(quickstart.get_config()).create_model()
    assert usual.model == own.clone(drop_path_rate=0.0)
    assert other.model.prop_attn is True
    reduction = quickstart.get_config().reduction.to_dict()
    given = {k: v for k, v in reduction.items() if v is not None}
    assert usual.use(given) == "as trained"
    assert usual.use(given | {"keep_rate": 0.5}) == "off-the-shelf"
    assert other.use(given) == usual.use(DENSE) == "off-the-shelf"
