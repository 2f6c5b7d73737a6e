"""The stages: functions from committed stages to what one folder holds. `stage(inputs, out, config, services)`.

A stage reads the folders that it is given, writes below `out` alone and keeps nothing. The loop decides what runs and
commits it. A stage that was killed half-way is called again. It finds its committed parts, ledger rows or checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import yaml

from tailor_ray.config import RunConfig
from tailor_ray.demo.schooling import school_tiny_student
from tailor_ray.errors import DataError
from tailor_ray.layout import (
    ATTEMPTS,
    BASE_STUDENT,
    EXAMPLES,
    LESSONS,
    LOG,
    QUESTIONS,
    SPLITS,
    STUDENT,
    StageId,
    student_after,
)
from tailor_ray.models import ModelRef, identify, publish, read_model, write_model
from tailor_ray.models.texts import ChatTemplate
from tailor_ray.observe import advice
from tailor_ray.observe.metrics import part_answered
from tailor_ray.prompts.student import StudentPrompt
from tailor_ray.records import QUESTION_SCHEMA, Attempt, Question, from_table, to_table
from tailor_ray.rounds.services import Services
from tailor_ray.statistics import accuracy
from tailor_ray.storage import (
    Part,
    PartsDigest,
    Store,
    commit_part,
    committed_parts,
    find_part,
    read_manifest,
    read_part,
    stage_parts,
)
from tailor_ray.storage.commits import part_name
from tailor_ray.student.exam import ExamJob, enough_to_know, questions_per_part, run_exam
from tailor_ray.student.sampling import Sampling
from tailor_ray.tasks import answer_kind, demos_for, grader_for, load_task
from tailor_ray.teacher.parts import Intake
from tailor_ray.teacher.teach import Shard, TeachJob
from tailor_ray.teacher.teach import teach as ask_teacher
from tailor_ray.training.example_parts import ExamplesJob, make_examples
from tailor_ray.training.held_out import HeldOut, check_agreement, read_answers
from tailor_ray.training.launch import TrainJob

log = logging.getLogger(__name__)

CARD_SECTIONS = ("task", "student", "exam", "teacher", "training")  # of the settings that change results

REFLECTIONS = {"triplet": "triplet loss", "likelihood": "as less likely", "none": "by the lessons on them alone"}


@dataclass(frozen=True, slots=True)
class Inputs:
    """The folders of the committed stages that a stage of `round` may read."""

    round: int
    folders: Mapping[StageId, Store]

    def __getitem__(self, stage: StageId) -> Store:
        return self.folders[stage]

    def metrics(self, stage: StageId) -> dict[str, Any]:
        manifest = read_manifest(self[stage])
        return {} if manifest is None else manifest.metrics

    def all(self, name: str) -> dict[int, Store]:
        """The folders of every round's stage of this name, by round."""
        return {stage.round: folder for stage, folder in sorted(self.folders.items()) if stage.name == name}


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage made: its parts, the model it left, and the figures that the report shows."""

    metrics: dict[str, Any]
    parts: dict[str, PartsDigest] = field(default_factory=dict)
    model: ModelRef | None = None


Stage = Callable[[Inputs, Store, RunConfig, Services], StageResult]


def questions(inputs: Inputs, out: Store, config: RunConfig, services: Services) -> StageResult:
    """Write the task's splits as parts of as many rows as suit the exam: the parts that all later ones belong to.

    Raises DataError for a split without a question.
    """
    task = load_task(config.task, config.seed)
    parts = {}
    for split in SPLITS:
        with services.progress.stage(f"round 0 questions {split}", unit="questions") as bar:
            parts[split] = _write_questions(out, split, getattr(task, split), config, bar.advance)
        if not parts[split].rows:
            raise DataError(
                f"task {config.task.name!r} has no {split} questions; give more data, "
                "or change task.validation_share or task.limit_train"
            )
    counts = {split: digest.rows for split, digest in parts.items()}
    return StageResult({**counts, "findings": task.findings.to_json()}, parts)


def _write_questions(
    out: Store, split: str, rows: Iterable[Question], config: RunConfig, advance: Callable[[int], None]
) -> PartsDigest:
    iterator, parts = iter(rows), list[Part]()
    first = list(islice(iterator, enough_to_know(config, split)))
    size, iterator = questions_per_part(config, split, len(first)), chain(first, iterator)
    while batch := list(islice(iterator, size)):
        parts.append(commit_part(out, split, len(parts), to_table(batch, QUESTION_SCHEMA)))
        advance(len(batch))
    for part in committed_parts(out, split, verify=False)[len(parts) :]:  # of a try with smaller parts
        out.delete(f"{part_name(split, part.index)}.json")
        out.delete(part.entry.path)
    return PartsDigest.of(parts)


def student(inputs: Inputs, out: Store, config: RunConfig, services: Services) -> StageResult:
    """Make the tiny student, or copy the one that was given to where every node finds it.

    The latter is loaded once for training, so that a model that cannot be trained is found before the run pays.
    """
    metrics: dict[str, Any] = {}
    if not config.student.is_given:
        services.trainers.close()  # taken over; on a small machine they hold the core that schooling needs
        steps = config.student.tiny.school_steps
        with services.progress.stage("round 0 schooling", total=steps, unit="steps") as bar:
            model, metrics = school_tiny_student(
                config.student.tiny, student_prompt(config, None), config.seed, out, lambda done: bar.update(done=done)
            )
    else:
        out.delete(STUDENT)  # of a try that was cut off, when another student may have been given
        model = publish(identify(config.student.model, config.student.revision), out, STUDENT)
        if config.rounds.max_rounds:
            services.trainers.try_student(model)
    write_model(out, model)
    return StageResult({**metrics, "path": str(model), "sha256": model.sha256}, model=model)


def exam(
    inputs: Inputs,
    out: Store,
    config: RunConfig,
    services: Services,
    on_part: Callable[[Part], None] = lambda _: None,
) -> StageResult:
    """The student answers every training question several times.

    `on_part` gets the record of each part once it is committed.
    """
    before = inputs.all("exam").get(inputs.round - 1)
    return _ask(inputs, out, config, services, "train", before, on_part)


def teach(inputs: Inputs, out: Store, config: RunConfig, services: Services, intake: Intake) -> StageResult:
    """The teacher answers for the parts of the exam as they come out of `intake`.

    Each part of the exam gives one of lessons, of the same number.
    """
    with services.progress.stage(f"round {inputs.round} teach", unit="lessons") as bar:
        job = TeachJob(
            config=services.teacher,
            round=inputs.round,
            grader=grader_for(config.task),
            read=partial(_read_shard, inputs),
            questions=inputs.metrics(QUESTIONS)["train"],
            on_progress=lambda counts: bar.update(done=counts.get("done", 0), total=counts.get("wanted", 0)),
        )
        metrics, parts = ask_teacher(job, intake, out, services.ledger, services.open_pool)
    return StageResult(metrics, {LESSONS: parts})


def _read_shard(inputs: Inputs, part: Part) -> Shard:
    """What the teacher is shown of one part: questions, attempts, and which have a lesson of an earlier round."""

    def rows(folder: Store, prefix: str, columns: list[str] | None = None) -> Any:
        return read_part(folder, find_part(folder, prefix, part.index), columns)

    attempts = from_table(read_part(inputs[StageId(inputs.round, "exam")], part), Attempt)
    taught = [
        rows(folder, LESSONS, ["question_id"])["question_id"].to_pylist() for folder in inputs.all("teach").values()
    ]
    asked = from_table(rows(inputs[QUESTIONS], "train"), Question)
    return Shard(part.index, asked, attempts, frozenset(name for names in taught for name in names))


def examples(inputs: Inputs, out: Store, config: RunConfig, services: Services) -> StageResult:
    """Make what the student is to learn from: examples-i of questions-i, all rounds' lessons-i and attempts-i.

    One task per part runs on the cluster. The figures say how many examples have a pair.
    """
    services.connect()
    taught = inputs.all("teach")
    asked = stage_parts(inputs[QUESTIONS], "train")
    model = read_model(inputs[BASE_STUDENT])
    job = ExamplesJob(
        config=config.training,
        prompt=student_prompt(config, model),
        student=model,
        special_tokens=config.student.prompt_style == "plain",
        questions=inputs[QUESTIONS],
        lessons=taught,
        attempts=inputs[StageId(inputs.round, "exam")],
        out=out,
        seed=config.seed,
        round=inputs.round,
        latest=max((r for r in taught if inputs.metrics(StageId(r, "teach"))["accepted"]), default=inputs.round),
        branches=config.teacher.correction == "continue",
    )
    with services.progress.stage(f"round {inputs.round} examples", total=len(asked), unit="parts") as bar:
        digest, counts = make_examples(job, len(asked), lambda _: bar.advance())
    for text in advice.about_pairs(inputs.round, counts, config.training.reflection_weight, config.training.reflection):
        log.warning("%s", text)
    return StageResult(counts, {EXAMPLES: digest})


def train(inputs: Inputs, out: Store, config: RunConfig, services: Services) -> StageResult:
    """The student learns from the round's examples, and is written with its model card.

    It goes on from the student of the round before, or from the one that was given, by `training.start`.
    """
    start = BASE_STUDENT if config.training.start == "base" else student_after(inputs.round - 1)
    prompt = student_prompt(config, read_model(inputs[BASE_STUDENT]))
    asked = stage_parts(inputs[QUESTIONS], "validation")
    held_out = HeldOut(
        questions=tuple(row for part in asked for row in from_table(read_part(inputs[QUESTIONS], part), Question)),
        prompt=prompt,
        max_new_tokens=config.evaluation.max_new_tokens,
        dtype=config.student.dtype,
    )
    job = TrainJob(
        config=config.training,
        student=read_model(inputs[start]),
        examples=inputs[StageId(inputs.round, "examples")],
        out=out,
        seed=config.seed,
        round=inputs.round,
        held_out=held_out,
    )
    services.engines.release(config.training.workers)
    with services.progress.stage(f"round {inputs.round} train", unit="steps") as bar:
        result = services.trainers.train(job, lambda done, steps, _: bar.update(done=done, total=steps))
    made = inputs.metrics(StageId(inputs.round, "examples"))
    metrics = {**{name: made[name] for name in ("examples", "with_pair")}, **result.metrics}
    card = model_card(config, {r: inputs.metrics(StageId(r, "teach")) for r in inputs.all("teach")}, metrics)
    out.write_bytes(f"{STUDENT}/README.md", card.encode())
    return StageResult({**metrics, "student_sha256": result.model.sha256}, model=result.model)


def model_card(config: RunConfig, taught: Mapping[int, Mapping[str, Any]], trained: Mapping[str, Any]) -> str:
    """The model card of a round's student, as Markdown with the front matter that the hub reads.

    It says what the student learnt from and with which settings. How well it does is not known yet: the report says so,
    with intervals. `taught` holds the teaching's figures by round up to this one, `trained` those of its training.
    """
    given = f"{config.student.model}" + (f" at {config.student.revision}" if config.student.revision else "")
    data = config.task.name + (f", {config.task.path}" if config.task.path else "")
    settings = {name: section for name, section in config.results().items() if name in CARD_SECTIONS}
    steps = str(trained["steps"])
    if trained["step_kept"] != trained["steps"]:
        steps = f"{trained['step_kept']} of {steps}"
    lines = [
        *("---", "library_name: transformers", "pipeline_tag: text-generation"),
        *("tags: [reasoning, distillation, tailor-ray]", "---", "", f"# {config.name}, round {max(taught)}", ""),
        "A small causal language model that learnt step-by-step reasoning from a larger one, in rounds: on the",
        f"teacher's rationales (weighted cross-entropy) and its own mistakes ({REFLECTIONS[config.training.pairs]}).",
        "Made by tailor-ray.",
        "",
        f"- Data: {_plain(data)}",
        f"- Student as given: {_plain(given)}",
        f"- Teacher: {_plain(config.teacher.model)}",
        f"- Lessons accepted, by round: {', '.join(str(figures['accepted']) for figures in taught.values())}",
        f"- Examples of this round: {trained['examples']}, {trained['with_pair']} of them with a mistake",
        f"- Training steps of this round: {steps}",
        f"- Seed: {config.seed}",
        "- Accuracy: in the run's report",
        "",
        "## Settings",
        "",
        *("```yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).rstrip(), "```", ""),
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    return " ".join(text.split())


def evaluate(inputs: Inputs, out: Store, config: RunConfig, services: Services) -> StageResult:
    """Greedy answers on validation, which decides when to stop, and on test, for the report alone.

    A trained student is first compared with what transformers made of it when it was exported.
    """
    metrics: dict[str, Any] = {}
    if inputs.round:
        metrics["agreement"] = _check_agreement(inputs, config, services)
    parts: dict[str, PartsDigest] = {}
    for split in SPLITS[1:]:
        result = _ask(inputs, out, config, services, split, None, lambda _: None)
        parts |= result.parts
        metrics[split] = result.metrics | accuracy(result.metrics["correct"], result.metrics["attempts"])
        metrics["student_sha256"] = metrics[split].pop("student_sha256")
    return StageResult(metrics, parts)


def _ask(
    inputs: Inputs,
    out: Store,
    config: RunConfig,
    services: Services,
    split: str,
    before: Store | None,
    on_part: Callable[[Part], None],
) -> StageResult:
    """Ask the student a split: sampled when it is an exam on the training questions, greedily else."""
    sampled = split == "train"
    prefix = ATTEMPTS if sampled else split
    model = read_model(inputs[student_after(inputs.round - 1 if sampled else inputs.round)])
    engines = services.serve(model)
    job = ExamJob(
        prefix=prefix,
        split=split,
        prompt=student_prompt(config, read_model(inputs[BASE_STUDENT])),
        grader=grader_for(config.task),
        samples=config.exam.samples if sampled else 1,
        temperature=config.exam.temperature if sampled else 0.0,
        top_p=config.exam.top_p if sampled else 1.0,
        max_new_tokens=config.exam.max_new_tokens if sampled else config.evaluation.max_new_tokens,
        seed=config.seed,
        round=inputs.round,
        max_engine_restarts=config.exam.max_engine_restarts,
        before=before,
    )
    name = f"round {inputs.round} {'exam' if sampled else 'evaluate'} {split}"
    total = inputs.metrics(QUESTIONS)[split] * job.samples
    with services.progress.stage(name, total=total, unit="samples") as bar:

        def part_done(part: Part) -> None:
            part_answered(part)
            on_part(part)

        metrics, digest = run_exam(engines, job, inputs[QUESTIONS], out, part_done, bar)
    setting = f"{'exam' if sampled else 'evaluation'}.max_new_tokens"
    for text in advice.about_answers(name, metrics, setting, job.max_new_tokens):
        log.warning("%s", text)
    return StageResult({**metrics, "student_sha256": model.sha256}, {prefix: digest})


def _check_agreement(inputs: Inputs, config: RunConfig, services: Services) -> dict[str, int]:
    """Compare the engines with what transformers said of the trained student; {} where training left that out.

    Raises StageError where they differ.
    """
    trained = inputs[student_after(inputs.round)]
    answers, tokens = read_answers(trained.child(LOG))
    if not answers:
        return {}
    prompt = student_prompt(config, read_model(inputs[BASE_STUDENT]))
    sampling = Sampling(0.0, 1.0, tokens, prompt.stop, prompt.style == "plain")
    names, prompts = ([getattr(answer, key) for answer in answers] for key in ("question_id", "prompt"))
    said = services.serve(read_model(trained)).answer(names, prompts, [[0]] * len(answers), sampling)
    return check_agreement(answers, said.texts)


def student_prompt(config: RunConfig, model: ModelRef | None) -> StudentPrompt:
    """How the student is asked.

    A chat template is read from `model`, on the node that renders. Without a model there is none.
    """
    student, style = config.student, config.student.prompt_style
    demos = demos_for(config.task) if student.few_shot else ()
    chat = ChatTemplate(model, student.date, student.thinking) if style == "chat" and model is not None else None
    return StudentPrompt(style, answer_kind(config.task), demos, chat, student.thinking)


ALONE: dict[str, Stage] = {
    function.__name__: function for function in (questions, student, exam, examples, train, evaluate)
}
"""What does a stage by itself; teaching goes together with its exam (loop.exam_and_teach)."""
