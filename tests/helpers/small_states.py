"""Small training states for the tests of checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from imagepiece_jax.training.train_step import TrainState


def make_state(seed=0, width=64):
    rng = np.random.default_rng(seed)
    head = {"kernel": rng.normal(size=(8, width)), "bias": rng.normal(size=width)}
    params = {
        "head": {name: value.astype(np.float32) for name, value in head.items()},
        "scale": rng.normal(size=5).astype(jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return TrainState(
        step=np.asarray(seed, np.int32),
        params=params,
        batch_stats={"norm": {"mean": np.full(3, seed, np.float32)}},
        opt_state=jax.device_get(optimizer.init(params)),
        ema={"params": params},
        window={"loss": np.float32(seed)},
        skipped=np.asarray(0, np.int32),
    )


def abstract(state):
    return jax.eval_shape(lambda: state)


def assert_same(state, expected):
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert isinstance(a, np.ndarray)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def save(workdir, steps, **options):
    checkpoints = Checkpoints(workdir, **options)
    for step in steps:
        checkpoints.save(step, make_state(step), {"epoch": step / 2})
    checkpoints.close()
    return checkpoints


def folders(workdir, kind="latest"):
    return sorted(p.name for p in (workdir / "checkpoints" / kind).iterdir())
