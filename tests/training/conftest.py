"""Tensors here are tiny: a second thread would only wait for the first, the more so on a busy machine."""

import os

import pytest
import torch
import torch.distributed as dist


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def one_worker(tmp_path_factory):
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks for it
    meet = tmp_path_factory.mktemp("meet") / "here"
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    if before is None:
        del os.environ["LOCAL_RANK"]
