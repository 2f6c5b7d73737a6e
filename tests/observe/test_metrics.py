"""Names, kinds and tags are checked everywhere; without Ray nothing else happens. The scrape is tested with Ray."""

import subprocess
import sys

import pytest

from tailor_ray.observe import metrics


def test_unknown_names_kinds_and_tags_are_refused():
    with pytest.raises(KeyError):
        metrics.count("teacher_request", outcome="accepted")
    with pytest.raises(KeyError, match="is a counter"):
        metrics.gauge("teacher_requests", 1, outcome="accepted")
    with pytest.raises(KeyError, match="outcome"):
        metrics.count("teacher_requests", result="accepted")
    with pytest.raises(KeyError, match="histogram"):
        metrics.observe("teacher_in_flight", 1.0)


def test_without_ray_it_is_a_no_op_that_imports_nothing():
    code = (
        "import sys\nfrom tailor_ray.observe import metrics\n"
        "metrics.count('teacher_requests', 2, outcome='accepted')\nmetrics.gauge('round', 1)\n"
        "metrics.observe('teacher_latency_seconds', 0.1, outcome='accepted')\n"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_scraped_names():
    assert metrics.TABLE["teacher_requests"].scraped == "ray_tailor_teacher_requests_total"
    assert metrics.TABLE["accuracy"].scraped == "ray_tailor_accuracy"
    assert all(name == metric.name and metric.description for name, metric in metrics.TABLE.items())
