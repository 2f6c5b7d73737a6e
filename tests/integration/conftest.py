"""One Ray cluster a session; the engines of tests.integration.engines live on it."""

import pytest


@pytest.fixture(scope="session")
def ray_cluster():
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=300_000_000,
        include_dashboard=False,
        namespace="test",
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items):
    for item in items:
        if "/integration/" in item.nodeid:
            item.add_marker(pytest.mark.integration)
