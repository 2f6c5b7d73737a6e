"""What all tests share: the data folder, an isolated cache, Ray's authentication said, and untimed properties."""

import gc
import os
from pathlib import Path

import hypothesis
import pytest

# A local ray.init() would write a token into the home folder and so change every later cluster of this user.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two test workers share two cores, and threads that spin while they wait starve each other. Engines and training
# workers count their threads themselves, so theirs sleep: a real student's round takes 120 instead of 231 s so.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Of Ray 2.60, for every cluster that a test starts. Where engines hold all CPUs an idle process ends after 1 s, and the
# next stage's tasks import torch and transformers anew.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "60000")

# No example of a property has a time limit, for a busy machine would fail it.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


# Collecting the tests imports torch, transformers and vLLM. The garbage collector would go over their objects again and
# again, while they are made and in every test, and they live to the end.
gc.disable()


def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _isolated_cache(tmp_path_factory):
    os.environ["TAILOR_RAY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def data_folder():
    """The five public data sets, laid out as TAILOR_RAY_DATA says; skipped, and said, without it."""
    folder = os.environ.get("TAILOR_RAY_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TAILOR_RAY_DATA does not name a folder with the data sets")
    return Path(folder)
