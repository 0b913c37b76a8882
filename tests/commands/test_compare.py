"""The command that compares: a tiny run to its files."""

import contextlib
import json

import numpy as np
import pytest

from imagepiece_jax.commands import compare
from imagepiece_jax.common import xla_options
from imagepiece_jax.data.registry import open_source
from imagepiece_jax.data.source import Subset
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import compare as comparing
from imagepiece_jax.evaluate.cache import ResultCache
from tests.command import call
from tests.experiments import tiny_context
from tests.experiments.tiny_context import MODEL


def test_figures_of_the_first_images_are_not_those_of_a_part(tmp_path, monkeypatch):
    """Former versions took the first --limit images; of all images nothing changed."""
    seen = []

    def stop(checkpoint, *_):
        seen.append(checkpoint.images.setting)
        raise InputError("stopped")

    monkeypatch.setattr(comparing, "compare", stop)
    path = tiny_context.pretrained(tmp_path).path
    words = [*MODEL, "--weights", path, "--data=digits", "--resize=none"]
    for more in ([], ["--limit=400"], ["--limit=30"]):
        call(compare.main, *words, *more, "--out", tmp_path / "out")
    former, full = {}, open_source("digits", "val")
    for limit in (None, 400, 30):
        source = Subset(full, np.arange(30)) if limit == 30 else full
        facts = {"data": "digits", "digest": source.digest, "images": len(source)}
        size = {"limit": limit, "image_size": [16, 16], "resize": "none"}
        former[limit] = facts | size
    assert seen[:2] == [former[None], former[400]]
    with_digest, without = dict(former[30]), dict(former[30])
    del without["digest"]
    with contextlib.closing(ResultCache(tmp_path / "out")) as results:
        for setting in (with_digest, without):
            results.result(setting, dict)
            assert setting in results and seen[2] not in results


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
    path = tiny_context.pretrained(tmp_path).path
    words = ["--config", config, *MODEL[2:], "--weights", path, "--limit=30"]
    words += ["--data=digits", "--resize=none"]
    words += ["--methods=random", "--shares=0.9", "--out", tmp_path / "out"]
    ended = call(compare.main, *words).ok()
    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["dense"]["images"] == 30 and report["images"]["limit"] == 30
    assert {line["method"] for line in report["settings"]} <= {"tome", "random"}
    # The config's dtype is for training, on another device.
    assert report["fields"]["dtype"] == xla_options.fast_dtype() == "float32"
    assert (tmp_path / "out" / "compare.md").read_text() in ended.out
    assert (tmp_path / "out" / "compare.png").exists()
    again = call(compare.main, *words)
    assert again.status == 0 and "measuring" not in again.err
