"""Training from scratch: the plan, the runs, and what they leave."""

import dataclasses
import json
import types

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from experiments import __main__ as command
from experiments import finetune, retokenization
from experiments.scratch import page, runs, systems
from experiments.scratch.options import SYSTEMS
from experiments.settings import Common, read_flags
from imagepiece_jax.config.run import OptimConfig, RunConfig
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.variables import fresh_variables
from tests.command import call, sentence
from tests.experiments.scratch_pages import TINY, tiny_options

WORDS = [f"--{name}={value}" for name, value in TINY.items()]
SOME = (systems.DENSE, "dynamicvit")
FLAGS = ["--seeds=0", "--dtype=float32", "--keep_rate=0.4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two classes, dark and light: folder:PATH."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 14), ("val", 9)):
        for label, low in (("dark", 0), ("light", 90)):
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(low, low + 160, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def some():
    """The command with two systems, which compile in less time than ten.

    DynamicViT chooses in one block, and starts from the dense model; both have the
    patch stem and two blocks. Programs that runs share stay.
    """
    named = f"--systems={','.join(SOME)}"
    every, full = systems.systems, systems.config

    def shorter(*args):
        dense, learned = every(*args)
        chosen = learned.reduction | {"blocks": (1,)}
        return [
            dataclasses.replace(dense, stem="patch"),
            dataclasses.replace(learned, stem="patch", reduction=chosen),
        ]

    def shallow(system, *args):
        """Two blocks for those with the patch stem; costs are matched with the conv."""
        config = full(system, *args)
        config.model.depth = 2 if system.stem == "patch" else config.model.depth
        return config

    def run(*words):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(systems, "systems", shorter)
            patch.setattr(systems, "config", shallow)
            fake = types.SimpleNamespace(clear_caches=lambda: None)
            patch.setattr(finetune, "jax", fake)
            return call(command.main, "scratch", *WORDS, *FLAGS, named, *words)

    return run


@pytest.fixture(scope="module")
def done(some, data, tmp_path_factory, quickly_begun):
    """The folder of a finished command."""
    out = tmp_path_factory.mktemp("done")
    ended = some("--data", data, "--out", out)
    assert ended.status == 0, ended
    return out


# Systems


@pytest.mark.parametrize(
    "size",
    [
        {"image_size": 64, "width": 128, "depth": 6, "keep_rate": 0.8},
        {"image_size": 64, "width": 128, "depth": 6, "keep_rate": 0.5},
        {"image_size": 128, "width": 192, "depth": 12},
    ],
)
def test_costs_are_equal(size):
    options = systems.Options(**size)
    compared = systems.systems(options, 10, "float32")
    side = options.image_size
    cost = {each.name: model_macs(model_of(each, options), side) for each in compared}
    for name in ("evit", "tome", "dynamicvit", "random"):
        assert abs(cost[name] / cost["imagepiece_conv"] - 1) < 0.02, name
    assert cost["imagepiece_conv"] == cost["dropping_conv"] < 0.8 * cost[systems.DENSE]
    assert cost["imagepiece_patch"] == cost["dropping_patch"] < cost["imagepiece_conv"]
    assert tuple(s.name for s in compared) == SYSTEMS
    assert [s.name for s in compared][0] == systems.DENSE
    assert {s.name for s in compared if s.start} == {"dynamicvit"}


def model_of(system, options, classes=10):
    return RunConfig.from_config(
        systems.config(system, options, classes, "float32")
    ).create_model()


def test_the_declared_size_has_three_cycles():
    """That of docs/tables/retokenization."""
    size = {"image_size": 64, "patch": 8, "width": 96, "depth": 12, "heads": 3}
    options = systems.Options(**size, systems=",".join(retokenization.TITLES))
    compared = {s.name: s for s in systems.systems(options, 10, "float32")}
    assert compared.keys() == set(retokenization.TITLES)
    plans = {}
    for name, each in compared.items():
        plan = model_of(each, options).plan
        plans[name] = [(layer.attn_tokens, layer.mlp_tokens) for layer in plan]
    ours = plans.pop("imagepiece_conv")
    gone = [6, 5, 10, 4, 4, 7, 3, 3, 4, 0, 0, 0]
    assert [before - after for before, after in ours] == gone
    assert (ours[0][0], ours[-1][1]) == (65, 19)
    for name, theirs in plans.items():
        assert theirs == ([(65, 65)] * 12 if name.startswith("dense") else ours)


def test_systems_of_a_seed_share_first_weights():
    """All but the stem, of which patch and conv have other parameters."""
    reduced = ("imagepiece_conv", "dropping_patch")
    named = ("dense_conv", "dense_patch", *reduced)
    options = tiny_options(systems=",".join(named))
    # The blocks between these two take longest to compile.
    parts = ("cls_token", "pos_embed", "patch_embed", "blocks_0", "norm", "head")
    parts += (f"blocks_{options.depth - 1}",)

    @jax.jit  # what several have in common is compiled once
    def draw():
        compared = systems.systems(options, 2, "float32")
        models = {each.name: model_of(each, options, 2) for each in compared}
        return {k: fresh_variables(m, 16, 7, parts) for k, m in models.items()}

    first = {name: variables["params"] for name, variables in draw().items()}
    for name in reduced:
        dense = first[f"dense_{name.partition('_')[2]}"]
        chex.assert_trees_all_equal(first[name], dense)
    shared = [dict(first[f"dense_{stem}"]) for stem in ("conv", "patch")]
    for params in shared:
        del params["patch_embed"]
    assert len(shared[0]) > 5
    chex.assert_trees_all_equal(*shared)


def test_systems_differ_in_stem_and_reduction_alone():
    """So those of a seed see the same images, in the same order and crops."""
    options = tiny_options()
    rest = set()
    for each in systems.systems(options, 2, "float32"):
        config = systems.config(each, options, 2, "float32").unlock()
        assert config.model.stem == each.stem
        assert config.reduction.name == each.reduction["name"]
        del config["reduction"], config.model["stem"]
        rest.add(config.to_json_best_effort(sort_keys=True))
    assert len(rest) == 1


def test_a_run_has_the_recipe_of_its_options(tmp_path):
    options = tiny_options(peak_lr=3e-3, epochs=20)
    compared = systems.systems(options, 2, "float32")
    plan = {"images": [28, 18, 2]}
    for one in compared:
        config = systems.config(one, options, 2, "float32")
        config = runs._of_run(config, one, plan, tmp_path, 5)
        RunConfig.from_config(config).create_model()
        optim = OptimConfig.from_config(config)
        assert optim.peak_lr == pytest.approx(3e-3)
        assert (optim.warmup_epochs, optim.epochs, config.seed) == (2.0, 20, 5)
        # A line and a checkpoint an epoch of three steps, one evaluation.
        steps = config.log_every_steps, config.checkpoint_every_steps
        assert steps == (3, 3) and config.eval_every_epochs == 20
        start = str(tmp_path / "dense_conv_seed5") if one.start else ""
        assert config.init.weights == config.teacher.weights == start
        assert (one.name == "dynamicvit") == bool(start)


@pytest.mark.parametrize(
    "name, value",
    [
        *(("depth", 3), ("epochs", 0), ("keep_rate", 1.5)),
        *(("systems", "tomme"), ("systems", "dynamicvit")),
    ],
)
def test_options_are_checked(name, value):
    with pytest.raises(InputError) as error:
        systems.Options(**{name: value})
    assert (error.value.field, error.value.value) == (f"--{name}", value)


# Runs


def test_the_command_leaves_a_json_for_each_run(done):
    folder = done / "scratch"
    plan = json.loads((folder / "plan.json").read_text())
    assert [s["name"] for s in plan["systems"]] == [*SOME]
    assert plan["settings"]["epochs"] == 2
    for name in SOME:
        result = json.loads((folder / f"{name}_seed0.json").read_text())
        assert len(result["train_loss"]) == 2 and result["images"] == 18
        assert result["acc1"] == pytest.approx(100 * page.bits(result).mean())
        assert (folder / f"{name}_seed0" / "checkpoints" / "latest").is_dir()
    assert "| DynamicViT |" in (done / "scratch.md").read_text()


def test_what_is_finished_is_only_read(some, done, tmp_path):
    page = tmp_path / "page.md"
    ended = some("--data=folder:/nowhere", "--out", done, "--page", page)
    assert ended.status == 0, ended
    assert page.read_text() == (done / "scratch.md").read_text() == ended.out[:-1]


def test_other_settings_are_refused(some, data, done):
    ended = some("--data", data, "--out", done, "--width=32")
    text = sentence(ended)
    assert "plan.json: width was 16, but now it is 32; allowed:" in text


def test_other_data_are_refused(some, data, done, tmp_path):
    result = done / "scratch" / "dynamicvit_seed0.json"
    moved = result.rename(tmp_path / "moved.json")
    plan = json.loads((done / "scratch" / "plan.json").read_text())
    path = tmp_path / "scratch" / "plan.json"
    path.parent.mkdir()
    for field, other in (
        ("images", [29, 18, 2]),
        ("digest", ["0" * 16, plan["digest"][1]]),
    ):
        path.write_text(json.dumps(plan | {field: other}))
        text = sentence(some("--data", data, "--out", tmp_path))
        assert f"plan.json: {field} was {other}, but now it is {plan[field]}" in text
    moved.rename(result)


def test_a_result_of_another_plan_is_refused(some, data, done):
    path = done / "scratch" / "dynamicvit_seed7.json"
    result = json.loads((done / "scratch" / "dynamicvit_seed0.json").read_text())
    settings = result["settings"] | {"epochs": 9}
    path.write_text(json.dumps(result | {"settings": settings}))
    text = sentence(some("--data", data, "--out", done))
    path.unlink()
    assert "dynamicvit_seed7.json: epochs was 9, but now it is 2" in text


@pytest.mark.parametrize(
    "words, text",
    [
        (["--page=no/page.md"], "--page no/page.md cannot be written"),
        (["--seeds=4294967296"], "--seeds is '4294967296'; allowed:"),
        (["--train_batch_size=29"], "batch_size is 29, but"),
        (["--patch=5"], "image_size is 16"),
    ],
)
def test_mistakes_are_reported_at_once(some, data, tmp_path, words, text):
    assert text in sentence(some("--data", data, "--out", tmp_path, *words))
    assert not list(tmp_path.glob("scratch/*.json"))


def test_flags_are_the_fields():
    assert read_flags(systems.Options) == systems.Options()
    assert read_flags(Common) == Common()
