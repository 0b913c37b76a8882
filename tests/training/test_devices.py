"""Eight devices compute the same as one: batches, draws, statistics and gradients."""

import numpy as np
import pytest

from imagepiece_jax.training.metric_writer import read_metrics
from tests import runs

# Everything that draws is on, in two micro-batches: 1,438 digits, 64 a step, 22 steps.
FIELDS = runs.DENSE | {
    "model.drop_path_rate": 0.2,
    "mixup": 0.8,
    "cutmix": 1.0,
    "batch_size": 64,
    "grad_accum_steps": 2,
    "epochs": 1,
    "eval_batch_size": 64,
}


def losses(workdir):
    train = [line for line in read_metrics(workdir) if line["kind"] == "train"]
    return np.array([line["loss"] for line in train[:20]])


@pytest.mark.slow
def test_eight_devices_train_like_one(tmp_path):
    """Dense: a near tie in a reduction may flip a rank once rounding differs."""
    started = [
        runs.start(tmp_path / f"{n}", FIELDS, tmp_path / "cache", n, quick=True)
        for n in (1, 8)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    one, eight = (losses(tmp_path / name) for name in ("1", "8"))
    assert len(one) == 20
    np.testing.assert_allclose(eight, one, rtol=0, atol=1e-5)
