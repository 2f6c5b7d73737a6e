"""Do others read a run's student as its report does? Its test questions, asked by clients that are not ours.

    python jobs/benchmarks/clients.py RUN                  plain transformers, greedily, on the last round's student
    python jobs/benchmarks/clients.py RUN --url URL        the openai client, at the URL of `tailor-ray serve RUN`

For chat students without demos. Prints as its last line one JSON object: right, questions, and report, which has the
count and the interval of the run's own evaluation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tailor_ray.answers import Grader
from tailor_ray.config import load_config
from tailor_ray.layout import RUN_FILE, StageId, stage_folder
from tailor_ray.models import read_model, resolve
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import AnswerKind, Question, Verdict, from_table
from tailor_ray.storage import Store, committed_parts, read_manifest, read_part

Messages = list[dict[str, str]]
AT_ONCE = 8


def transformers_texts(folder: str, asked: list[Messages], new_tokens: int) -> Iterable[str]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    for at in range(0, len(asked), AT_ONCE):
        ids = tokenizer.apply_chat_template(
            asked[at : at + AT_ONCE], add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
        )
        out = model.generate(**ids, max_new_tokens=new_tokens, do_sample=False)
        yield from tokenizer.batch_decode(out[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def served_texts(url: str, asked: list[Messages], new_tokens: int) -> Iterable[str]:
    from openai import OpenAI

    client = OpenAI(base_url=f"{url.rstrip('/').removesuffix('/v1')}/v1", api_key="none")
    name = client.models.list().data[0].id

    def ask(messages: Messages) -> str:
        found = client.chat.completions.create(
            model=name,
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=new_tokens,
        )
        return found.choices[0].message.content or ""

    with ThreadPoolExecutor(AT_ONCE) as threads:
        yield from threads.map(ask, asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished run's folder")
    parser.add_argument("--url", help="where it is served; without it transformers answers")
    given = parser.parse_args()
    run = Store.open(given.run)
    config = load_config(run.path(RUN_FILE))
    folder = stage_folder(run, StageId(0, "questions"))
    questions = [
        row for part in committed_parts(folder, "test") for row in from_table(read_part(folder, part), Question)
    ]
    # A template that writes the turns down as they are: what is asked are the run's own messages.
    prompt = StudentPrompt("chat", AnswerKind.NUMBER, chat=lambda messages, _: json.dumps(messages))
    asked: list[Messages] = [json.loads(prompt.render(question)) for question in questions]
    last, tokens = config.rounds.max_rounds, config.evaluation.max_new_tokens
    if given.url:
        texts = served_texts(given.url, asked, tokens)
    else:
        student = resolve(read_model(stage_folder(run, StageId(last, "train"))))
        texts = transformers_texts(str(student), asked, tokens)
    grader = Grader(AnswerKind.NUMBER)
    verdicts = [grader.grade(question, text, "stop").verdict for question, text in zip(questions, texts, strict=True)]
    manifest = read_manifest(stage_folder(run, StageId(last, "evaluate")))
    assert manifest is not None, f"{given.run} has no figures of round {last}"
    report = {name: manifest.metrics["test"][name] for name in ("correct", "ci95")}
    print(json.dumps({"right": verdicts.count(Verdict.CORRECT), "questions": len(questions), "report": report}))


if __name__ == "__main__":
    main()
