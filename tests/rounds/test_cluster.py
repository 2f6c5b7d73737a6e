"""The cluster that a run is told to use and that is not there."""

import pytest

from tailor_ray.config.run import ClusterConfig
from tailor_ray.errors import ConfigError
from tailor_ray.rounds.cluster import connected
from tests.integration.clusters import free_port


@pytest.mark.parametrize("by", ["setting", "environment"])
def test_an_address_where_nothing_listens_is_said_at_once(monkeypatch, by):
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # the session of another test's cluster is no answer
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1" if by == "setting" else address)
    with (
        pytest.raises(ConfigError, match=rf"no Ray cluster answers at '{address}' \(Connection refused\)"),
        connected(ClusterConfig(address=address if by == "setting" else None)),
    ):
        raise AssertionError("connected to nothing")
