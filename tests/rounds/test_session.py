"""A session that takes over what another one started."""

from tailor_ray.config import RunConfig
from tailor_ray.observe.progress import Progress
from tailor_ray.rounds.session import Session, Staff
from tailor_ray.storage import Store
from tailor_ray.student import school


class Workers:
    closed = False

    def close(self):
        self.closed = True


def test_training_workers_that_were_taken_over_leave_their_core_to_schooling(tmp_path, monkeypatch):
    """On one core schooling would wait for ever for theirs."""
    workers, seen = Workers(), []

    def schooled(*_):
        seen.append(workers.closed)
        return [], {}

    monkeypatch.setattr(school, "school_tiny_student", schooled)
    monkeypatch.setattr(Session, "connect", lambda _: None)
    store = Store.open(str(tmp_path))
    with Progress(10.0) as progress:
        session = Session(RunConfig(name="try", student={"model": "tiny"}), store, progress)
        session.take_staff(Staff(trainers=workers))
        session.make_tiny_student(store)
    assert seen == [True]
