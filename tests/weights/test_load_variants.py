"""One checkpoint under several reductions: models, variables, labels, costs."""

import json

from configs import quickstart
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.reduction.reduction import DENSE
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.weights.load import load
from tests.models import tiny
from tests.weights.test_load import run_folder

SIZE = {"embed_dim": 64, "num_heads": 4, "depth": 2}
CONFIG = tiny.model(**SIZE).config
DYNAMICVIT = "dynamicvit:blocks=(1,)"
PROPORTIONAL = {"reduction": "imagepiece:prop_attn=True"}


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
