"""Room on a cluster: counted by nodes, for a bundle lies on one."""

import pytest

from tailor_ray.rounds.cluster import fits, shown


@pytest.mark.parametrize(
    ("bundles", "nodes", "room"),
    [
        ([{"CPU": 1.0}] * 2, [{"CPU": 2}], True),
        ([{"CPU": 1.5}] * 2, [{"CPU": 2}, {"CPU": 1}], False),  # three CPUs in all, and no place for the second
        ([{"CPU": 1.0, "GPU": 1.0}] * 2, [{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], True),
        ([{"GPU": 2.0}], [{"GPU": 1}, {"GPU": 1}], False),  # an engine's GPUs are on one node
        ([{"CPU": 1.0}, {"CPU": 3.0}], [{"CPU": 3}, {"CPU": 1}], True),
        ([], [], True),
        ([{"CPU": 1.0}], [], False),
    ],
)
def test_each_bundle_needs_a_node_of_its_own(bundles, nodes, room):
    assert fits(bundles, nodes) is room


def test_it_is_said_as_a_person_says_it():
    assert shown([{"CPU": 1.5, "GPU": 1.0}] * 2) == "2 × (1.5 CPU and 1 GPU)"
