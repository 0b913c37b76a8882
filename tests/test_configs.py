import ast
import importlib
import re
import shlex

import pytest
from absl import flags
from ml_collections import config_flags

from configs import base
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.models.architecture import PART_NAMES
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.training import optimizer
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.data import check_training
from imagepiece_jax.training.report import count_training_flop
from tests.helpers.small_runs import ROOT

# config_flags reads files this way on Python 3.11.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

IMAGENET = 1281167  # training images
FILES = sorted((ROOT / "configs").glob("[!_]*.py"))
NAMES = [path.stem for path in FILES]
# A command of a docstring, and its cost on the next line.
COMMAND = re.compile(r"^python train\.py ((?:.*\\\n)*.*)(?:\n    (\S.*))?", re.M)
# A row of configs/deit_s.py: argument, GMACs, tokens, EFLOP, published accuracy.
ROW = re.compile(r"^(deit_\S+) +([\d.]+) +(\d+) +([\d.]+) +(\S.*)$", re.M)


def read_docstring(name):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    return ast.get_docstring(ast.parse(text), clean=False)


def list_commands():
    """(name, command line, its cost or "") for every command of a docstring."""
    rows = []
    for name in NAMES:
        rows += [(name, *row) for row in COMMAND.findall(read_docstring(name))]
    for argument, gmacs, tokens, eflop, acc1 in ROW.findall(read_docstring("deit_s")):
        published = "no published acc1" if acc1 == "-" else f"published acc1 {acc1}"
        cost = f"{gmacs} GMACs, {tokens} final tokens, {eflop} EFLOP, {published}"
        rows.append(("deit_s", f"--config configs/deit_s.py:{argument}", cost))
    return [(name, line.replace("\\\n", ""), cost) for name, line, cost in rows]


def read_config(name, *argument):
    return importlib.import_module(f"configs.{name}").get_config(*argument)


def parse_command(line):
    """The config of a command line, as train.py reads it."""
    values = flags.FlagValues()
    words = ["train.py", *shlex.split(line)]
    options = {"flag_values": values, "sys_argv": words}
    config = config_flags.DEFINE_config_file("config", **options)
    values(words)
    return config.value


def list_fields(config, prefix=""):
    """(dotted name, value) of every field."""
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from list_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@pytest.mark.parametrize("size", ["deit_ti", "deit_s"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_an_argument_or_a_file(name, size):
    """A method without a file trains by DeiT's recipe."""
    own_file = ROOT / "configs" / f"deit_s_{name}.py"
    if own_file in FILES:
        config = read_config(own_file.stem, size)
    else:
        config = read_config("deit_s", f"{size},{name}")
    run = RunConfig.from_config(config)
    assert (config.model.name, run.reduction.name) == (size, name)
    check_training(run, Placement())
    assert run.create_model().config.embed_dim == {"deit_ti": 192, "deit_s": 384}[size]


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_a_model_and_passes_the_checks(name):
    config = read_config(name)
    run = RunConfig.from_config(config)
    check_training(run, Placement())
    optimizer.create_optimizer(run, 10)
    assert run.create_model().config.num_classes == config.num_classes
    assert str(run.reduction) == config.reduction  # without defaults
    if name.startswith("deit") and not config.init.fresh and "finetune" not in name:
        own = {"reduction": config.reduction, "model.name": config.model.name}
        own["model.stem"] = config.model.stem
        recipe = dict(list_fields(base.get_config())) | own
        assert dict(list_fields(config)) == recipe


@pytest.mark.parametrize(
    "name, line, cost", list_commands(), ids=lambda text: text[:60]
)
def test_commands_cost_what_docstrings_state(name, line, cost):
    run = RunConfig.from_config(parse_command(line))
    model = run.create_model()
    if name == "quickstart" or "--config.data.name" in line and not cost:
        return
    gmacs = f"{model_macs(model) / 1e9:.2f}"
    expected = f"{gmacs} GMACs, {model.plan[-1].mlp_tokens} final tokens"
    if run.data.name == "imagenet2012":
        expected += f", {count_training_flop(run, IMAGENET) / 1e18:#.3g} EFLOP"
        assert re.match(rf"{expected}, (no )?published acc1", cost)
    else:
        assert cost == expected


# DeiT's published values (Touvron et al. 2021): the paper's table 9,
DEIT_RECIPE = {"epochs": 300, "batch_size": 1024, "lr": 0.0005, "weight_decay": 0.05}
DEIT_RECIPE |= {"warmup_epochs": 5.0, "label_smoothing": 0.1, "clip_grad_norm": 0.0}
DEIT_RECIPE |= {"model.drop_path_rate": 0.1, "mixup": 0.8, "cutmix": 1.0}
DEIT_RECIPE |= {"augment.magnitude": 9.0, "augment.magnitude_std": 0.5}
DEIT_RECIPE |= {"augment.erase_prob": 0.25}
# main.py of facebookresearch/deit,
DEIT_RECIPE |= {"betas": (0.9, 0.999), "eps": 1e-8, "warmup_lr": 1e-6, "min_lr": 1e-5}
DEIT_RECIPE |= {"mixup_prob": 1.0, "mixup_switch_prob": 0.5, "ema_decay": 0.99996}
DEIT_RECIPE |= {"image_size": 224, "num_classes": 1000}
# its samplers.py, and its datasets.py, which resizes to 256,
DEIT_RECIPE |= {"data.repeats": 3, "data.crop": "random_resized", "data.resize": "deit"}
DEIT_RECIPE |= {"data.eval_crop": None}  # 224 / 256 without start weights
DEIT_RECIPE |= {"data.eval_interpolation": "bicubic"}
# timm's rand_augment_transform and RandomResizedCropAndInterpolation.
DEIT_RECIPE |= {"augment.layers": 2, "augment.prob": 0.5}
DEIT_RECIPE |= {"data.area": (0.08, 1.0), "data.flip": True}
# Published training's changes: Rao et al. 2021 and Kong et al. 2022. The learning rate
# is 1e-3 at 1,024 images.
MASKED_TRAINING = {"epochs": 30, "batch_size": 1024, "lr": 5e-4, "min_lr": 1e-6}
MASKED_TRAINING |= {"warmup_epochs": 5.0, "clip_grad_norm": 0.0, "ema_decay": 0.9999}
MASKED_TRAINING |= {"model.drop_path_rate": 0.0, "data.repeats": 1}
MASKED_TRAINING |= {"init.fresh": ("reducer",)}
LEARNED = {"ratio_weight": 2.0, "kl_weight": 0.5, "token_weight": 0.5}
LEARNED |= {"backbone_lr": 0.01, "frozen_epochs": 5.0}


@pytest.mark.parametrize("size", ["deit_ti", "deit_s"])
@pytest.mark.parametrize(
    "name, recipe, method_fields",
    [
        ("deit_s", DEIT_RECIPE, {}),
        ("deit_s_dynamicvit", MASKED_TRAINING, LEARNED),
        ("deit_s_imagepiece_dynamicvit", MASKED_TRAINING, LEARNED),
        (
            "deit_s_spvit",
            MASKED_TRAINING | {"min_lr": 1e-5, "warmup_epochs": 0.0},
            LEARNED,
        ),
    ],
)
def test_published_recipes(size, name, recipe, method_fields):
    config = read_config(name, size)
    assert dict(list_fields(config)).items() >= recipe.items()
    method = RunConfig.from_config(config).reduction.method
    assert vars(method).items() >= method_fields.items()


def test_recipe_of_90_epochs():
    """big_vision's configs/vit_s16_i1k.py, in the fields of this package."""
    config = read_config("deit_s", "vit_s16_i1k")
    run = RunConfig.from_config(config)
    assert (run.batch_size, run.peak_lr) == (1024, 1e-3)
    # There: p -= schedule * (lr * adam + wd * p); here: p -= lr * (adam + decay * p).
    assert run.peak_lr * run.weight_decay == pytest.approx(1e-4)
    assert run.warmup_epochs * (IMAGENET // 1024) == pytest.approx(10_000)
    recipe = {"model.name": "deit_s", "epochs": 90, "clip_grad_norm": 1.0}
    recipe |= {"mixup": 0.2, "mixup_prob": 1.0, "cutmix": 0.0}
    recipe |= {"augment.layers": 2, "augment.prob": 1.0}
    recipe |= {"augment.magnitude_std": 0.0, "augment.erase_prob": 0.0}
    # A value in [0, 255] becomes one in [-1, 1].
    recipe |= {"model.mean": (0.5, 0.5, 0.5), "model.std": (0.5, 0.5, 0.5)}
    fields = dict(list_fields(config))
    assert recipe.items() <= fields.items()
    arch = run.create_model().config.arch
    assert (arch.pool, arch.class_token) == ("mean", False)
    # There Posterize keeps four bits at the highest magnitude, 10; here none.
    assert fields["augment.magnitude"] < 10


def test_every_model_part_has_a_placeholder():
    assert {*base.get_config().model.arch} == {*PART_NAMES}
    line = "--config configs/quickstart.py --config.model.arch.gelu=tanh"
    config = parse_command(f"{line} --config.reduction=tome:r=8:prop_attn=False")
    assert config.model.arch.gelu == "tanh"
    model = RunConfig.from_config(config).create_model()
    assert (model.config.arch.gelu, model.prop_attn) == ("tanh", False)
    assert [layer.mlp_tokens for layer in model.plan][:2] == [57, 49]
