"""Two runs of one seed whose exams end in different orders leave the same manifests, stage by stage."""

import pytest

from tailor_ray.config import RunConfig
from tailor_ray.layout import FIRST_STAGES, STAGES, StageId, stage_folder
from tailor_ray.rounds.loop import run
from tailor_ray.rounds.services import WorkerPools
from tailor_ray.storage import Store, read_manifest
from tailor_ray.student import exam

EVERY_STAGE = [
    *(StageId(0, name) for name in FIRST_STAGES),
    *(StageId(number, name) for number in (1, 2) for name in STAGES),
]


def config(folder, name):
    return RunConfig(
        name=name,
        storage=str(folder),
        seed=11,
        task={"name": "arithmetic", "limit_train": 40, "limit_test": 8, "max_validation": 6},
        student={
            "tiny": {"hidden_size": 64, "layers": 2, "heads": 2, "school_steps": 60, "school_questions": 400},
            "engines": 1,
            "max_model_len": 256,
            "kv_cache_gib": 0.125,
        },
        exam={"samples": 2, "max_new_tokens": 32, "shard_questions": 8},
        evaluation={"max_new_tokens": 16},
        teacher={"base_url": "mock", "mock": {"wrong_share": 0.1, "malformed_share": 0.1}},
        training={"steps": 8, "learning_rate": 1e-3, "batch_size": 8, "warmup_steps": 0, "max_length": 256},
        rounds={"max_rounds": 2},
        observe={"log_every_s": 5.0},
    )


def digests(folder, name):
    store = Store.open(str(folder)).child(name)
    return {str(stage): read_manifest(stage_folder(store, stage)).digest() for stage in EVERY_STAGE}


@pytest.mark.timeout(600)
def test_the_order_in_which_an_exams_parts_end_is_seen_nowhere(ray_cluster, tmp_path, monkeypatch):
    pools, listed, add, orders = WorkerPools(config(tmp_path, "first")), exam.stage_parts, exam.Totals.add, []

    def noted(totals, part):
        orders.append(part.index)
        add(totals, part)

    monkeypatch.setattr(exam.Totals, "add", noted)
    try:
        run(config(tmp_path, "first"), pools)
        monkeypatch.setattr(exam, "stage_parts", lambda store, split: listed(store, split)[::-1])
        run(config(tmp_path, "second"), pools)
    finally:
        pools.close()
    half = len(orders) // 2
    assert orders[:half] != orders[half:]
    assert sorted(orders[:half]) == sorted(orders[half:])
    assert digests(tmp_path, "second") == digests(tmp_path, "first")
