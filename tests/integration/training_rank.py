"""One rank of test_training_parallel: python -m tests.integration.training_rank FOLDER WORKERS RANK."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.modules.module import register_module_forward_pre_hook, register_module_full_backward_pre_hook

from tailor_ray.config.training import TrainingConfig
from tailor_ray.storage import Store
from tailor_ray.training.deepspeed_engine import TrainingEngine
from tailor_ray.training.export import export_student, try_export
from tailor_ray.training.model import Student, load_student
from tailor_ray.training.plan import Plan
from tailor_ray.training.steps import Stepper
from tailor_ray.training.tokens import tokenize_examples
from tests.integration.test_training_parallel import EXPORTS, LIKELIHOOD_SPREADS, SPREADS, STEPS
from tests.training.parts import of_examples
from tests.training.students import make_examples


def train(
    folder: Path, workers: int, rank: int, dtype: torch.dtype, **settings: Any
) -> tuple[Student, TrainingEngine, list[float]]:
    """The student, its optimizer and the losses after STEPS steps."""
    config = TrainingConfig(epochs=99, learning_rate=1e-3, warmup_steps=2, batch_size=11, redi_floor=4.0, **settings)
    student = load_student(folder / "student", config, dtype, seed=0)
    # 40 examples of 23 questions do not divide by 11 or 2: nothing is dropped, shards are uneven
    data = tokenize_examples(make_examples(40, questions=23), student.tokenizer, 256, 192, config.pairs)
    shapes, rows = of_examples(data)
    plan = Plan.of(shapes, config, 5, workers)
    engine = TrainingEngine(student.loss_module(1.0, config.reflection, config.redi_floor), config, workers, dtype)
    stepper = Stepper(plan, rows, engine, student, 1, rank, torch.device("cpu"))
    return student, engine, [stepper.step(step)["loss"] for step in range(STEPS)]


def run(folder: Path, workers: int, rank: int, stage: int, passes: int, reflection: str = "triplet") -> None:
    settings = {"zero_stage": stage, "accumulation": passes, "reflection": reflection}
    _, engine, losses = train(folder, workers, rank, torch.float32, **settings)
    state = engine.state_dict()
    if rank == 0:
        name = f"{workers}-{stage}-{passes}" + (f"-{reflection}" if reflection != "triplet" else "")
        plain = {key.removeprefix("student."): value.float().clone().contiguous() for key, value in state.items()}
        save_file(plain, folder / name)
        (folder / f"{name}.json").write_text(json.dumps(losses))


def export(folder: Path, workers: int, rank: int, stage: int, dtype: str, lora: dict[str, int] | None) -> None:
    """Train and export, as a worker does."""
    student, engine, _ = train(folder, workers, rank, getattr(torch, dtype), zero_stage=stage, lora=lora)
    try_export(student, folder / f"scratch-{rank}")
    state = engine.state_dict()
    if rank == 0:
        out = Store.open(str(folder / f"exported-{workers}-{dtype}"))
        export_student(student, state, out, folder / "scratch", "4GB")


def share_held(folder: Path) -> None:
    """Load a student under ZeRO-3 and write how much of it was whole on this worker, at the most and at the end."""
    held: dict[int, torch.nn.Parameter] = {}
    most = 0

    def look(module: torch.nn.Module, *_: Any) -> None:
        nonlocal most
        held.update((id(p), p) for p in module.parameters())
        most = max(most, sum(p.numel() for p in held.values()))

    hooks = [register_module_forward_pre_hook(look), register_module_full_backward_pre_hook(look)]
    student = load_student(folder / "wide", TrainingConfig(zero_stage=3), torch.float32, seed=0)
    for hook in hooks:
        hook.remove()
    parameters = list(student.model.parameters())
    whole, left = (sum(map(count, parameters)) for count in (lambda p: p.ds_numel, lambda p: p.numel()))
    (folder / "held.json").write_text(json.dumps([most / whole, left, student.layout_note]))


def main() -> None:
    folder, workers, rank = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{workers}", rank=rank, world_size=workers)
    for spread in (*SPREADS, *LIKELIHOOD_SPREADS):
        if spread[0] == workers:
            run(folder, workers, rank, *spread[1:])
    for export_workers, stage, dtype, lora in EXPORTS:
        if export_workers == workers:
            export(folder, workers, rank, stage, dtype, lora)
    if workers == 2:
        share_held(folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
