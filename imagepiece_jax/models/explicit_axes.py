"""Models on a mesh with explicit axes, which `jax.make_mesh` makes by default.

With explicit axes every reshape and every gather would have to name its sharding. A
model runs on automatic axes instead, and its results are divided like its images.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes, reshard


def batch_sharding(images: Any) -> NamedSharding | None:
    """How a batch is divided over explicit axes; None for any other array."""
    abstract_sharding = jax.typeof(images).sharding
    mesh = abstract_sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return None
    spec = PartitionSpec(*abstract_sharding.spec[:1])
    if isinstance(images, jax.core.Tracer):
        return NamedSharding(mesh, spec)
    # Outside of jit a mesh needs devices.
    device_mesh = getattr(getattr(images, "sharding", None), "mesh", mesh)
    return NamedSharding(device_mesh, spec)


def on_auto_axes(call: Callable, images: Any) -> Callable:
    """Make `call` run on automatic axes, if `images` and its results have explicit."""
    sharding = batch_sharding(images)
    return auto_axes(call, out_sharding=sharding) if sharding else call


def call_on_auto_axes(
    method: Callable, module: nn.Module, sharding: NamedSharding, *arrays: Any
) -> Any:
    """Call a module's method on arrays whose batch has an explicit sharding."""
    replicated_sharding = NamedSharding(sharding.mesh, PartitionSpec())
    mapped_method = nn.map_variables(
        method,
        trans_in_fn=lambda variables: reshard(variables, PartitionSpec()),
        trans_out_fn=lambda variables: reshard(variables, replicated_sharding),
        mutable=True,
    )
    mapped_call = functools.partial(mapped_method, module)
    return auto_axes(mapped_call, out_sharding=sharding)(*arrays)
