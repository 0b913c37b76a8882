"""The command that compares: mistakes in one sentence, and a tiny run to its files."""

import json

import pytest

from imagepiece_jax.commands import compare
from imagepiece_jax.common import xla_options
from tests.command import call, sentence
from tests.experiments import tiny_context


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "--weights is missing"),
        (["--weights=x", "--shares=0"], "--shares is '0'; allowed are shares of the"),
        (["--weights=x", "--shares=x"], "--shares is 'x'; allowed are shares of the"),
        (["--weights=x", "--shares="], "--shares is empty; allowed are one or more"),
        (
            ["--weights=x", "--methods=none"],
            "--methods is 'none'; allowed are imagepiece, evit",
        ),
        (["--weights=x", "--methods=evti"], "--methods is 'evti'; did you mean evit"),
    ],
)
def test_mistakes_in_flags(tmp_path, words, message):
    ended = call(compare.main, *words, "--data=digits", "--out", tmp_path / "out")
    assert message in sentence(ended)
    assert not (tmp_path / "out").exists()


HALF = """
from configs import quickstart
def get_config():
    config = quickstart.get_config()
    config.model.dtype = "bfloat16"
    return config
"""


@pytest.mark.slow
def test_a_small_comparison_leaves_its_files(tmp_path):
    config = tmp_path / "mine" / "half.py"
    config.parent.mkdir()
    config.write_text(HALF)
    model = [
        *("--config", config, "--config.model.stem=patch"),
        *(f"--config.model.{k}={v}" for k, v in tiny_context.SIZE.items()),
        *("--config.model.mlp_ratio=2", "--config.reduction.merge_blocks=(0,)"),
        "--config.reduction.prune_blocks=(2,)",
    ]
    path = tiny_context.pretrained(tmp_path).path
    words = [*model, "--weights", path, "--data=digits", "--resize=none", "--limit=30"]
    words += ["--methods=random", "--shares=0.9", "--out", tmp_path / "out"]
    ended = call(compare.main, *words)
    assert ended.status == 0, ended
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["dense"]["images"] == 30 and report["images"]["limit"] == 30
    assert {line["method"] for line in report["settings"]} <= {"tome", "random"}
    # The config's dtype is for training, on another device.
    assert report["fields"]["dtype"] == xla_options.fast_dtype() == "float32"
    assert (tmp_path / "out" / "compare.md").read_text() in ended.out
    assert (tmp_path / "out" / "compare.png").exists()
    again = call(compare.main, *words)
    assert again.status == 0 and "measuring" not in again.err
