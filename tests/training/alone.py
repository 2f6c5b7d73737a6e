"""One training worker in the test's own process, without Ray: student, optimizer and steps."""

import torch

from tailor_ray.config.training import TrainingConfig
from tailor_ray.storage import Store
from tailor_ray.training.deepspeed_engine import TrainingEngine
from tailor_ray.training.model import load_student
from tailor_ray.training.plan import Plan
from tailor_ray.training.steps import History, Stepper
from tailor_ray.training.tokens import tokenize_examples
from tests.training.parts import of_examples
from tests.training.students import make_examples


class Worker:
    """On 40 examples; needs the fixture `one_worker`."""

    def __init__(self, folder, tmp_path, dtype=torch.float32, **settings):
        config = TrainingConfig(**{"steps": 8, "learning_rate": 1e-2, "warmup_steps": 0} | settings)
        self.student = load_student(folder, config, dtype, seed=0)
        data = tokenize_examples(make_examples(40), self.student.tokenizer, 256, 192)
        shapes, rows = of_examples(data)
        self.plan = Plan.of(shapes, config, 5, 1)
        self.engine = TrainingEngine(self.student.loss_module(1.0), config, 1, dtype)
        self.stepper = Stepper(self.plan, rows, self.engine, self.student, 1, 0, torch.device("cpu"))
        self.out = Store.open(str(tmp_path / "out"))
        self.history = History()
