"""What the teacher's tests share."""

import pytest

from tailor_ray.storage import Store
from tailor_ray.teacher.ledger import Ledger


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILOR_RAY_CACHE", str(tmp_path / "cache"))
    ledger = Ledger(Store.open(str(tmp_path / "teacher")))
    yield ledger
    ledger.close()
