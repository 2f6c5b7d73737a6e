"""One rank of test_training_parallel: python -m tests.integration.training_rank FOLDER WORKERS RANK."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from tailor_ray.config.training import TrainingConfig
from tailor_ray.training.engine import Engine
from tailor_ray.training.model import load_student
from tailor_ray.training.plan import Plan
from tailor_ray.training.steps import Stepper
from tailor_ray.training.tokens import tokenize_examples
from tests.integration.test_training_parallel import LIKELIHOOD_SPREADS, SPREADS, STEPS
from tests.training.parts import of_examples
from tests.training.students import make_examples


def run(folder: Path, workers: int, rank: int, stage: int, passes: int, reflection: str = "triplet") -> None:
    config = TrainingConfig(
        epochs=99, learning_rate=1e-3, warmup_steps=2, batch_size=11, zero_stage=stage, accumulation=passes,
        reflection=reflection, redi_floor=4.0,
    )  # fmt: skip
    student = load_student(folder / "student", config, torch.float32, seed=0)
    # 40 examples of 23 questions do not divide by 11 or 2: nothing is dropped, shards are uneven
    data = tokenize_examples(make_examples(40, questions=23), student.tokenizer, 256, 192, config.pairs)
    shapes, rows = of_examples(data)
    plan = Plan.of(shapes, config, 5, workers)
    engine = Engine(student.loss_module(1.0, reflection, config.redi_floor), config, workers, torch.float32)
    stepper = Stepper(plan, rows, engine, student, config, 1, rank, torch.device("cpu"), torch.float32)
    losses = [stepper.step(step)["loss"] for step in range(STEPS)]
    state = engine.state_dict()
    if rank == 0:
        name = f"{workers}-{stage}-{passes}" + (f"-{reflection}" if reflection != "triplet" else "")
        plain = {key.removeprefix("student."): value.float().clone().contiguous() for key, value in state.items()}
        save_file(plain, folder / name)
        (folder / f"{name}.json").write_text(json.dumps(losses))


def main() -> None:
    folder, workers, rank = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{workers}", rank=rank, world_size=workers)
    for spread in (*SPREADS, *LIKELIHOOD_SPREADS):
        if spread[0] == workers:
            run(folder, workers, rank, *spread[1:])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
