"""Models on a mesh with explicit axes, which `jax.make_mesh` makes by default.

With explicit axes every reshape and every gather would have to name its sharding. A
model runs on automatic axes instead, and its results are divided like its images.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes, reshard


def batch_sharding(images: Any) -> NamedSharding | None:
    """How a batch is divided over explicit axes; None for any other array."""
    # Outside of jit the results need a mesh of devices; a tracer's mesh is abstract.
    sharding = getattr(images, "sharding", None)
    if isinstance(images, jax.core.Tracer):
        sharding = jax.typeof(images).sharding
    if not isinstance(sharding, NamedSharding):
        return None
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))


def on_auto_axes(call: Callable, images: Any) -> Callable:
    """Make `call` run on automatic axes if the images are on explicit ones.

    call: a function of arrays; all its results have the images' batch axis
    """
    sharding = batch_sharding(images)
    if sharding is None:
        return call
    mesh = sharding.mesh
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    return auto_axes(call, axes=explicit, out_sharding=sharding)


def with_auto_variables(method: Callable, mesh: Any) -> Callable:
    """Make a module's method, called in `on_auto_axes`, read and write its variables.

    mesh: the mesh of the variables, with explicit axes
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    return nn.map_variables(
        method,
        trans_in_fn=lambda variables: reshard(variables, PartitionSpec()),
        trans_out_fn=lambda variables: reshard(variables, replicated),
        mutable=True,
    )
