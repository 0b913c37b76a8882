"""Every config builds a model, and says truly what it costs."""

import ast
import functools
import operator
import re
import shlex

import jax
import jax.numpy as jnp
import pytest

from configs import base
from imagepiece_jax import config_files
from imagepiece_jax.models import registry
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.training import from_config, run_dir
from tests.runs import ROOT

FILES = sorted((ROOT / "configs").glob("*.py"))
NAMES = [path.stem for path in FILES]
WANTED = """base deit_ti deit_s deit_b deit_ti_imagepiece deit_ti_imagepiece_patch_stem
deit_s_imagepiece deit_s_imagepiece_fast deit_s_imagepiece_merge_only
deit_s_imagepiece_patch_stem deit_s_conv_stem deit_s_evit deit_s_evit_fused
deit_ti_finetune deit_ti_imagepiece_finetune deit_ti_imagepiece_finetune_conv
quickstart""".split()


@pytest.fixture(scope="module")
def configs():
    return {path.stem: config_files.load(path) for path in FILES}


def source(name):
    return (ROOT / "configs" / f"{name}.py").read_text()


def fields(config, prefix=""):
    """(dotted name, value) of every field."""
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_all_that_should_be_there_are():
    assert set(WANTED) <= set(NAMES)


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"none"}))
def test_every_method_has_a_config_for_both_sizes(configs, name):
    for size in ("deit_ti", "deit_s"):
        config = configs.get(f"{size}_{name}")
        assert config, f"add configs/{size}_{name}.py or drop the line in METHODS"
        assert (config.model.name, config.reduction.name) == (size, name)


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_a_model_and_passes_the_checks(configs, name):
    config = configs[name]
    from_config.check(config)
    from_config.placement(config)
    from_config.train_transform(config), from_config.eval_transform(config)
    from_config.schedule(config, steps_per_epoch=10)
    from_config.adamw(config, rate=1e-3, steps_per_epoch=10)
    model, size = from_config.model(config), config.image_size
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)

    def forward(images):
        return model.init_with_output(jax.random.key(0), images)[0]

    logits = jax.eval_shape(forward, images).logits
    assert (logits.shape, logits.dtype) == ((2, config.num_classes), jnp.float32)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_has_its_control_with_the_other_stem(configs, name):
    """One override, which costs the difference of the stems and moves no token."""
    config = configs[name].copy_and_resolve_references()
    stems = {}
    for config.model.stem in ("patch", "conv"):
        model = from_config.model(config)
        stems[config.model.stem] = registry.model_macs(model, config.image_size)
        assert model.stem == config.model.stem
        tokens = {layer.attn_tokens for layer in model.plan}
    assert tokens == {
        layer.attn_tokens for layer in from_config.model(configs[name]).plan
    }
    dense = [from_config.dense(config, stem=stem) for stem in ("conv", "patch")]
    conv, patch = (registry.model_macs(model, config.image_size) for model in dense)
    assert stems["conv"] - stems["patch"] == conv - patch > 0


@pytest.mark.parametrize("name", NAMES)
def test_reduction_fields_are_those_of_the_method(configs, name):
    """All of them stand in the config, so that each can be overridden."""
    given = dict(configs[name].reduction)
    method = METHODS[given.pop("name")]
    assert set(given) == set(method.fields)


@pytest.mark.parametrize("name", NAMES)
def test_docstring_names_command_cost_and_tokens(configs, name):
    text = ast.get_docstring(ast.parse(source(name)))
    if name == "base":
        return
    assert f"python train.py --config configs/{name}.py" in text
    config = configs[name]
    model = from_config.model(config)
    gmacs = registry.model_macs(model, config.image_size) / 1e9
    told = re.search(r"([\d.]+) GMACs", text)
    if name != "quickstart":
        assert told[1] == f"{gmacs:.2f}"
    tokens = re.search(r"(\d+) final tokens", text)
    if tokens:
        assert int(tokens[1]) == model.plan[-1].mlp_tokens


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_a_docstring_can_be_given(name):
    text = ast.get_docstring(ast.parse(source(name))).replace("\\\n", " ")
    for command in re.findall(r"^python train\.py .*", text, flags=re.MULTILINE):
        words = shlex.split(command)[2:]
        path, *changes = [word.split("=", 1) for word in words if word != "--config"]
        config = config_files.load(ROOT / path[0])
        for flag, value in changes:
            config_files.override(config, flag.removeprefix("--config."), value)


@pytest.mark.parametrize("name", [n for n in NAMES if n.endswith("finetune")])
def test_fine_tuning_starts_from_weights_at_small_steps(configs, name):
    """The trained weights are evaluated first, and then move a little."""
    tuned, whole = configs[name], base.get_config()
    assert tuned.lr < whole.lr / 10 and tuned.epochs <= whole.epochs / 10
    if "evit" not in name:
        assert tuned.init.evaluate and tuned.data.repeats == 1


# Published figures; tokens are those of the last block, class token included.
@pytest.mark.parametrize(
    "name, gmacs, tokens",
    [
        ("deit_ti", 1.25, 197),
        ("deit_s", 4.6, 197),
        ("deit_b", 17.56, 197),
        ("deit_s_imagepiece", 2.78, 61),
        ("deit_s_imagepiece_fast", 2.17, 26),
        ("deit_s_evit", 3.0, 69),
        ("deit_s_evit_fused", 3.03, 72),
        ("deit_s_dynamicvit", 2.98, 68),
        ("deit_s_spvit", 2.46, 30),
        ("deit_s_imagepiece_dynamicvit", 2.87, 61),
        ("deit_s_tome", 2.7, 41),
        ("deit_s_imagepiece_tome", 2.78, 61),
    ],
)
def test_cost_and_tokens_are_the_published_ones(configs, name, gmacs, tokens):
    model = from_config.model(configs[name])
    assert registry.model_macs(model, 224) / 1e9 == pytest.approx(gmacs, abs=0.005)
    assert model.plan[-1].mlp_tokens == tokens


def test_deit_recipe():
    """Touvron et al. 2021, table 9, for a batch of 1,024."""
    wanted = {
        "epochs": 300,
        "batch_size": 1024,
        "lr": 5e-4,
        "weight_decay": 0.05,
        "warmup_epochs": 5,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "mixup_prob": 1.0,
        "mixup_switch_prob": 0.5,
        "model.drop_path_rate": 0.1,
    }
    assert wanted.items() <= dict(fields(base.get_config())).items()


# Rao et al. 2021 and Kong et al. 2022: what their published training sets otherwise.
MASKED_TRAINING = {
    "epochs": 30,
    "batch_size": 1024,
    "lr": 5e-4,  # 1e-3 at 1,024 images
    "min_lr": 1e-6,
    "warmup_epochs": 5.0,
    "weight_decay": 0.05,
    "clip_grad_norm": 0.0,
    "ema_decay": 0.9999,
    "model.drop_path_rate": 0.0,
    "data.repeats": 1,  # no repeated augmentation
    "augment.layers": 2,
    "mixup": 0.8,
    "cutmix": 1.0,
    "init.fresh": ("reducer",),
    "reduction.ratio_weight": 2.0,
    "reduction.kl_weight": 0.5,
    "reduction.token_weight": 0.5,
    "reduction.backbone_lr": 0.01,
    "reduction.frozen_epochs": 5.0,
}


@pytest.mark.parametrize("size", ["deit_ti", "deit_s"])
@pytest.mark.parametrize(
    "method, changes",
    [
        ("dynamicvit", {}),
        ("imagepiece_dynamicvit", {}),
        ("spvit", {"min_lr": 1e-5, "warmup_epochs": 0.0}),
    ],
)
def test_recipe_of_masked_training(configs, size, method, changes):
    found = dict(fields(configs[f"{size}_{method}"]))
    wanted = MASKED_TRAINING | changes
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("deit")])
def test_only_what_a_paper_trains_otherwise_leaves_the_recipe(configs, name):
    """From scratch: DeiT's recipe, field by field."""
    config, whole = configs[name], dict(fields(base.get_config()))
    if config.init.fresh or "finetune" in name:
        return
    apart = {
        field
        for field, value in fields(config)
        if not field.startswith("reduction.") and value != whole[field]
    }
    assert apart <= {"model.name", "model.stem"}


def test_every_field_of_base_has_a_comment():
    lines = source("base").splitlines()
    bare = [
        line.strip()
        for line in lines
        if re.match(r"    config\.[\w.]+ = ", line)
        and "#" not in line
        and "ConfigDict()" not in line
    ]
    assert bare == []


TEXTS = {int: "977", float: "0.125", str: "text", tuple: "(0.5, 0.5)"}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_field_can_be_overridden(path):
    config = config_files.load(path)
    for name, before in list(fields(config)):
        *groups, leaf = name.split(".")
        kind = functools.reduce(operator.getitem, groups, config).get_type(leaf)
        rest = dict(fields(config))
        config_files.override(config, name, TEXTS.get(kind, str(not before)))
        changed = dict(fields(config))
        assert type(changed[name]) is kind and changed[name] != before
        assert rest | {name: changed[name]} == changed


def test_numbers_of_base_are_checked():
    """A field that is a number has a range, or is looked at where it is used."""
    numbers = {
        name
        for name, value in fields(base.get_config())
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    elsewhere = {"model.drop_path_rate", "lr_offset"}
    assert numbers == set(from_config.RANGES) | elsewhere


def test_fields_that_may_change_exist():
    names = {name for name, _ in fields(base.get_config())}
    assert set(run_dir.MAY_CHANGE) <= names
