"""One Ray cluster a session; the engines of tests.integration.engines live on it."""

import os

import pytest

from tests.integration.engines import engine_pool, students

__all__ = ["engine_pool", "students"]  # imported here and nowhere else: each importing module would have its own
COVERAGE = ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


@pytest.fixture(scope="session")
def ray_cluster():
    """Its workers run without coverage: Ray ends them by a signal, before they could write what they saw."""
    import ray

    told = {name: os.environ.pop(name) for name in COVERAGE if name in os.environ}
    os.environ.setdefault("RAY_metrics_report_interval_ms", "4000")  # of 10 s, longer than some processes live
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=300_000_000,
        include_dashboard=False,
        namespace="test",
        log_to_driver=False,
    )
    os.environ.update(told)
    yield
    ray.shutdown()


ENGINES = (
    "test_alone",
    "test_exam",
    "test_exam_killed",
    "test_metrics_scrape",
    "test_real_student",
    "test_run",
    "test_same_digests",
    "test_serve",
)


@pytest.hookimpl(tryfirst=True)  # xdist's own hook reads the groups
def pytest_collection_modifyitems(items):
    """Of two test workers one asks engines and does whole runs, the other teaches and trains; each has a cluster."""
    for item in items:
        if "/integration/" in item.nodeid:
            item.add_marker(pytest.mark.integration)
            group = "engines" if item.path.stem in ENGINES else "teaching and training"
            item.add_marker(pytest.mark.xdist_group(group))
