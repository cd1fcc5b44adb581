"""Pins a Ray actor or task to one node.

Here, and not in `actors/`, because `pds/` needs it too and may not import `actors/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def this_node() -> str:
    """The Ray node id (hexadecimal) of the calling process. Ray must be running."""
    import ray

    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """The `scheduling_strategy` for an actor or task that must run on this node or fail.

    Ray never moves it elsewhere: it needs that node's local disk, and ends with the node.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """`on_node` for the node of the calling process."""
    return on_node(this_node())
