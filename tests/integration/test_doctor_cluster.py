"""The doctor on a cluster that is there."""

from tailor_ray.config import RunConfig
from tailor_ray.ops import doctor


def test_nodes_are_counted_and_their_clocks_compared(ray_cluster):
    nodes, clocks = doctor.cluster(RunConfig())
    assert nodes.found == "1 node(s), 2 CPUs, 0 GPUs"
    assert clocks.found == "at most 0.00 s apart"
    assert clocks.todo is None
