"""One checkpoint under several reductions: models, variables, labels, costs."""

import json

import pytest

from configs import quickstart
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.deploy.weights import layouts
from imagepiece_jax.deploy.weights.load import load
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.reduction.reduction import DENSE
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from tests.deploy.weights.test_load import run_folder
from tests.models import tiny

SIZE = {"embed_dim": 64, "num_heads": 4, "depth": 2}
CONFIG = tiny.model(**SIZE).config
DYNAMICVIT = "dynamicvit:blocks=(1,)"
PROPORTIONAL = {"reduction": "imagepiece:prop_attn=True"}


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
    return load(file, config=CONFIG).analyzed()


def test_a_file_is_read_once(file, monkeypatch):
    reads = []
    read_file = layouts.read_state_dict

    def counted(path, *rest):
        reads.append(path)
        return read_file(path, *rest)

    monkeypatch.setattr(layouts, "read_state_dict", counted)
    weights = load(file, config=CONFIG).analyzed()
    for reduction in (DENSE, "tome:r=2"):
        weights.with_reduction(reduction)
    assert weights.digest and reads == [file]


def test_selectors_of_other_shapes_than_those_of_the_weights_are_fresh(tmp_path):
    """Those that fit are used: see tests/models/test_pretrained.py."""
    learned = tiny.variables(tiny.model(DYNAMICVIT, **SIZE), seed=3)
    tiny.write(tmp_path / "vit_mini.npz", learned)
    path = tmp_path / "vit_mini.npz"
    spvit = "spvit:blocks=(1,):keep_rates=(0.5,)"
    for reduction, lacking in ((spvit, True), (DYNAMICVIT, False)):
        found = load(path, "none", config=CONFIG).with_reduction(reduction, seed=0)
        assert found.untrained == lacking
        for other, fresh in ((spvit, True), (DYNAMICVIT, False)):
            assert found.with_reduction(other, seed=0).untrained == fresh


def test_other_weights_have_another_digest(tmp_path, weights):
    other = tiny.variables(tiny.model(**SIZE), seed=1)
    path = tmp_path / "vit_mini.npz"
    tiny.write(path, other)
    digest = load(path, config=CONFIG).digest
    assert digest != weights.digest
    assert len(digest) == 16
    tiny.write(path, weights.variables)
    assert load(path, config=CONFIG).digest == weights.digest


def test_a_run_has_its_model_and_the_reduction_it_was_trained_with(tmp_path):

    def described(name, **changes):
        run = run_folder(tmp_path / name, **changes)
        config = json.loads((run / "config.json").read_text())
        model = RunConfig.from_config(config).create_model()
        with Checkpoints(run) as checkpoints:
            variables = tiny.fill(variable_shapes(model))
            checkpoints.save(1, variables, {}, "best")
        return load(run).analyzed()

    usual = described("usual", **{"seed": 7})
    other = described("other", **PROPORTIONAL)
    assert usual.source.seed == 7
    own = RunConfig.from_config(quickstart.get_config()).create_model()
    assert usual.model == own.with_execution(drop_path_rate=0.0)
    assert other.model.prop_attn is True
    given = quickstart.get_config().reduction
    assert usual.use(given) == "as trained"
    assert usual.use(f"{given}:keep_rate=0.5") == "off-the-shelf"
    assert other.use(given) == usual.use(DENSE) == "off-the-shelf"
