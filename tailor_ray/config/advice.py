"""Settings that are allowed and far off for the student that they name: sentences with what is usual."""

from __future__ import annotations

import re

from tailor_ray.config.run import RunConfig

HIGHEST_RATE = 1e-4  # SmolLM2-135M still learnt at 1e-4; larger models want 5e-6 to 2e-5
HIGHEST_LORA_RATE = 2e-3
LEAST_ROOM = 64  # tokens: a question of one sentence in a chat template takes as many


def about_settings(config: RunConfig) -> list[str]:
    """What is unusual; none of it for the tiny student, which is not pretrained."""
    if not config.student.is_given:
        return []
    student, training = config.student, config.training
    found = []
    highest = HIGHEST_LORA_RATE if training.lora else HIGHEST_RATE
    if training.learning_rate > highest:
        found.append(
            f"training.learning_rate={training.learning_rate:g} is far above what a pretrained model stands "
            f"({'1e-4 to 5e-4 with adapters' if training.lora else '5e-6 to 5e-5 for all weights'}): it forgets what "
            "it knows"
        )
    if student.prompt_style == "plain" and re.search(r"(?i)\b(?:instruct|chat|it)\b", re.sub(r"_", "-", student.model)):
        found.append(
            f"student.model={student.model} looks like an instruct model, and student.prompt_style=plain does not use "
            "its chat template: set it to chat"
        )
    for name, tokens in (("exam", config.exam.max_new_tokens), ("evaluation", config.evaluation.max_new_tokens)):
        if tokens > student.max_model_len - LEAST_ROOM:
            found.append(
                f"{name}.max_new_tokens={tokens} leaves under {LEAST_ROOM} of student.max_model_len="
                f"{student.max_model_len} tokens for the question: raise the latter"
            )
    return found
