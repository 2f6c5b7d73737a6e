"""One Ray cluster a session; the engines of tests.integration.engines live on it."""

import os

import pytest

from tests.integration.engines import engine_pool, students

__all__ = ["engine_pool", "students"]  # imported here and nowhere else: each importing module would have its own


@pytest.fixture(scope="session")
def ray_cluster():
    import ray

    os.environ.setdefault("RAY_metrics_report_interval_ms", "4000")  # of 10 s, longer than some processes live
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


ENGINES = (
    "test_alone",
    "test_exam",
    "test_exam_killed",
    "test_real_student",
    "test_run",
    "test_serve",
    "test_whole_run",
)


@pytest.hookimpl(tryfirst=True)  # xdist's own hook reads the groups
def pytest_collection_modifyitems(items):
    """Of two test workers one asks engines and does whole runs, the other teaches and trains; each has a cluster."""
    for item in items:
        if "/integration/" in item.nodeid:
            item.add_marker(pytest.mark.integration)
            group = "engines" if item.path.stem in ENGINES else "teaching and training"
            if item.get_closest_marker("xdist_group") is None:
                item.add_marker(pytest.mark.xdist_group(group))
