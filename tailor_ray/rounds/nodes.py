"""Room on the cluster: what it has, what its autoscaler may bring, and waiting for that within a bound."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)

Bundles = Sequence[dict[str, float]]
LOOK_EVERY_S = 2.0
SAY_EVERY_S = 60.0


class Nodes:
    """Of the cluster that this process is connected to. `wait_s` 0 waits for nothing: no node will join."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s

    def could_have(self, resource: str) -> float:
        """How much of a resource the cluster has, or may grow to."""
        import ray
        from ray._private.state import state  # private: ray 2.60 tells the autoscaler's limits nowhere else

        limits: dict[str, Any] = (state.get_max_resources_from_cluster_config() or {}) if self.wait_s else {}
        return max(ray.cluster_resources().get(resource, 0.0), limits.get(resource, 0.0))

    def fit(self, bundles: Bundles) -> bool:
        """Whether the nodes that are there have room for all bundles, were nothing else on them."""
        import ray

        left = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        return fits(bundles, left)

    def wait_for(self, bundles: Bundles, what: str) -> bool:
        """Ask the autoscaler for room and wait for it; False when there is none in time. `what` is for the log."""
        if self.fit(bundles):
            return True
        if not self.wait_s:
            return False
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=[dict(bundle) for bundle in bundles])
        started, said = time.monotonic(), -SAY_EVERY_S
        try:
            while (waited := time.monotonic() - started) < self.wait_s:
                if waited - said >= SAY_EVERY_S:
                    said = waited
                    log.warning(
                        "waiting for nodes: %s takes %s, the cluster has %s (%.0f of cluster.wait_for_nodes_s=%.0f s)",
                        *(what, shown(bundles), self.shown(), waited, self.wait_s),
                    )
                time.sleep(min(LOOK_EVERY_S, self.wait_s))
                if self.fit(bundles):
                    return True
        finally:
            request_resources(bundles=[])  # what runs there keeps the nodes by itself
        return False

    def shown(self) -> str:
        import ray

        found = ray.cluster_resources()
        return f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs"


def fits(bundles: Bundles, nodes: list[dict[str, Any]]) -> bool:
    """First fit: each bundle on one node, the largest first. `nodes` are changed."""
    for bundle in sorted(bundles, key=lambda bundle: -sum(bundle.values())):
        place = next((node for node in nodes if all(node.get(name, 0) >= n for name, n in bundle.items())), None)
        if place is None:
            return False
        for name, n in bundle.items():
            place[name] -= n
    return True


def shown(bundles: Bundles) -> str:
    one = " and ".join(f"{n:g} {name}" for name, n in bundles[0].items()) if bundles else "nothing"
    return f"{len(bundles)} × ({one})"
