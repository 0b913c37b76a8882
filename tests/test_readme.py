"""What the README shows works as it stands there."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction import schedule
from imagepiece_jax.training import run_dir

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(start):
    """The Python block that starts with `start`."""
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    return next(text for text in blocks if text.startswith(start))


def test_the_new_method_keeps_the_tokens_of_largest_norm():
    space = {}
    exec(compile(block("# imagepiece_jax/reduction/methods/"), "README", "exec"), space)
    steps = space["NormTopK"](keep_rate=0.5, blocks=(1,)).steps(4)
    plan = schedule.build(4, 16, steps)
    assert [layer.mlp_tokens for layer in plan] == [17, 9, 9, 9]
    model = ViT(plan, embed_dim=8, num_heads=2, patch_size=2, num_classes=3)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    outputs, _ = jax.jit(model.init_with_output)(jax.random.key(1), images)
    norms = np.linalg.norm(outputs.taps[0].x, axis=-1)
    for kept, norm in zip(np.asarray(outputs.results[0].dest) >= 0, norms, strict=True):
        assert kept.sum() == 8
        assert norm[kept].min() > norm[~kept].max()


def test_every_command_names_files_that_exist():
    for name in re.findall(r"configs/\w+\.py", README):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"python -m imagepiece_jax\.(\w+)", README):
        found = [f"imagepiece_jax/{name}.py", f"imagepiece_jax/{name}/__main__.py"]
        assert any((ROOT / file).is_file() for file in found), name
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_fields_that_may_change_are_those_it_lists():
    listed = README.split("these fields may differ:")[1].split(". Anything")[0]
    assert set(re.findall(r"`([\w.]+)`", listed)) == set(run_dir.MAY_CHANGE)


def test_python_example_runs(tmp_path, monkeypatch, assets):
    """With the public weights in the folder where the reader stands."""
    weights = assets / "weights" / "deit_tiny_patch16_224.pth"
    (tmp_path / weights.name).symlink_to(weights)
    monkeypatch.chdir(tmp_path)
    space = {}
    code = compile(block("import imagepiece_jax\n"), "README", "exec")
    with pytest.warns(UserWarning, match="ImageNet's mean and standard deviation"):
        exec(code, space)
    assert space["logits"].shape == (8, 1000)
    assert bool(jnp.isfinite(space["logits"]).all())
