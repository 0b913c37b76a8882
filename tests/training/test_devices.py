"""Eight devices compute what one does: the same batches, draws and statistics."""

import numpy as np
import pytest

from imagepiece_jax.training.metrics import read_metrics
from tests import runs

# Everything that draws is on: drop path, mixup, cutmix, shifts.
DRAWS = {"model.drop_path_rate": 0.2, "mixup": 0.8, "cutmix": 1.0}
# 1,438 digits, 64 a step: 22 steps.
FIELDS = DRAWS | {"batch_size": 64, "epochs": 1, "eval_batch_size": 64}


def losses(workdir):
    train = [line for line in read_metrics(workdir) if line["kind"] == "train"]
    return np.array([line["loss"] for line in train[:20]])


def both(tmp_path, fields):
    for devices in (1, 8):
        workdir = tmp_path / f"{devices}"
        runs.finish(workdir, fields, tmp_path / "cache", devices, quick=True)
    one, eight = (losses(tmp_path / name) for name in ("1", "8"))
    assert len(one) == 20
    return one, eight


@pytest.mark.slow
def test_imagepiece(tmp_path):
    """A near tie may flip a rank once rounding differs, so the bound widens."""
    one, eight = both(tmp_path, runs.SMALL | FIELDS)
    assert abs(one[0] - eight[0]) < 1e-6
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_dense_model_with_accumulated_gradients(tmp_path):
    """Two micro-batches of all devices: the split of the work changes nothing."""
    one, eight = both(tmp_path, runs.DENSE | FIELDS | {"grad_accum_steps": 2})
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)
