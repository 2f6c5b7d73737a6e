"""Which Ray cluster a run takes when it is told none."""

import os
import subprocess
import sys
from pathlib import Path

FIND = """
import ray
from tailor_ray.config.run import ClusterConfig
from tailor_ray.rounds.cluster import connected

with connected(ClusterConfig(dashboard=False, object_store_gib=0.2, num_cpus=3)):
    print(ray.cluster_resources()["CPU"])
"""


def test_another_runs_local_cluster_is_left_alone(ray_cluster):
    """Else both would share its cores, and one would end with the other."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("RAY_ADDRESS", None)
    found = subprocess.run([sys.executable, "-c", FIND], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout == "3.0\n"  # the session's has two
