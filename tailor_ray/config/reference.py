"""The reference of all settings as Markdown, made of the fields and the strings below them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tailor_ray.config.base import is_operational, section_of
from tailor_ray.config.run import METHODS, RunConfig

# What a run of one's own sets first.
FIRST = (
    *("task.name", "task.path", "student.model", "student.prompt_style", "teacher.teachers[].base_url"),
    *("teacher.teachers[].model", "teacher.budget_usd"),
    *("training.epochs", "training.learning_rate", "rounds.max_rounds"),
)


def reference() -> str:
    """All settings as Markdown: the ten to start with, one table per section, and what each method sets.

    Settings that change results are marked, for changing one makes a new run.
    """
    sections = list(_sections(RunConfig, "", False))
    fields = {f"{path}{name}": field for path, one, _ in sections for name, field in one.model_fields.items()}
    lines = [
        "# Settings",
        "",
        "A setting marked ● changes results: a run folder made with another value is refused. The others say where or",
        "how fast and may change from one start to the next. `--set section.setting=value` overrides the file.",
        "`extends: other.yaml` in a file takes the settings of another one, by its path from the first one's folder.",
        "",
        *("## the ten to start with", "", "| setting | default | what it is |", "|---|---|---|"),
        *(f"| `{name}` | `{_default(fields[name])}` | {_text(fields[name])} |" for name in FIRST),
        "",
    ]
    for path, section, operational in sections:
        title = path.rstrip(".") or "top level"
        lines += [f"## {title}", "", "| setting | default | | what it is |", "|---|---|---|---|"]
        for name, field in section.model_fields.items():
            if section_of(field.annotation) is None:
                mark = "" if operational or is_operational(field) else "●"
                lines.append(f"| `{path}{name}` | `{_default(field)}` | {mark} | {_text(field)} |")
            else:
                default = "`null`" if field.default is None else ""
                lines.append(f"| `{path}{name}` | {default} | | {_text(field)} See below. |")
        lines.append("")
        if section is RunConfig:
            lines += ["## methods", "", "| `method` | setting | default |", "|---|---|---|"]
            for method, defaults in METHODS.items():
                lines += [f"| {method} | `{name}` | `{json.dumps(value)}` |" for name, value in defaults.items()]
            lines.append("")
    return "\n".join(lines)


def _sections(section: type[BaseModel], path: str, operational: bool) -> Iterator[tuple[str, type[BaseModel], bool]]:
    """The path of each section, its class, and whether the whole of it is operational."""
    yield path, section, operational
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            many = "[]" if get_origin(field.annotation) is tuple else ""
            yield from _sections(inner, f"{path}{name}{many}.", operational or is_operational(field))


def _text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return json.dumps(value, ensure_ascii=False, default=str)
