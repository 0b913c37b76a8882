"""Saved traces are restored."""

import dataclasses
import json

import numpy as np
import pytest

from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.visualize import provenance
from tests.visualize import traces


def flat(trace):
    """Every field of a Trace and its Stages, arrays as lists."""
    return json.loads(json.dumps(dataclasses.asdict(trace), default=np.ndarray.tolist))


def test_traces_are_restored(tmp_path):
    methods, saved = traces.methods()
    provenance.save(tmp_path, ["a.jpg", "b.jpg"], methods, saved)
    names, described, loaded = provenance.load(tmp_path)
    assert names == ["a.jpg", "b.jpg"] and described == methods
    assert [flat(trace) for trace in loaded] == [flat(trace) for trace in saved]
    assert loaded[0].stages[0].source.dtype == np.int32
    assert loaded[0].grid == traces.GRID


def test_json_alone_holds_the_slot_of_every_patch(tmp_path):
    provenance.save(tmp_path, ["a.jpg", "b.jpg"], *traces.methods())
    saved = json.loads((tmp_path / "provenance.json").read_text())
    imagepiece, learner, dense = saved["methods"]
    sources = [stage["source"] for stage in imagepiece["stages"]]
    assert sources == [[traces.MERGED.tolist()] * 2, [traces.PRUNED.tolist()] * 2]
    assert [stage["source"] for stage in learner["stages"]] == [None]
    assert dense["stages"] == [] and dense["tokens"] == 6


def test_files_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(InputError, match="has no provenance that can be read"):
        provenance.load(tmp_path)
    with pytest.raises(RunError, match=r"provenance.npz cannot be written \(No such"):
        provenance.save(tmp_path / "gone", ["a", "b"], *traces.methods())
