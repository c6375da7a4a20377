"""Data parallelism: a mesh of devices, a replicated state, batches split over their leading axis.

Nothing else changes: a jitted step on sharded batches computes the same sums, over all devices.
"""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxnets.types import Any, PyTree


def make_mesh(devices: list[Any] | None = None) -> Mesh:
    """One axis, `data`, over all devices or those given."""
    devices = jax.devices() if devices is None else devices
    # Newer JAX defaults to Explicit axes, on which plain Flax code fails.
    return jax.make_mesh((len(devices),), ("data",), devices=devices, axis_types=(AxisType.Auto,))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """The tree on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard(batch: PyTree, mesh: Mesh, *, axis: int = 0) -> PyTree:
    """The batch with its leading axis (or `axis`) split over the mesh.

    Raises:
      ValueError: the mesh's size doesn't divide the batch.
    """
    size, devices = jax.tree.leaves(batch)[0].shape[axis], mesh.size
    if size % devices:
        raise ValueError(f"shard: the {devices} devices of the mesh must divide the batch, got {size} examples.")
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(*[None] * axis, "data")))
