"""The reference of all settings, generated from the fields and the strings below them, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tailor_ray.config.base import is_operational
from tailor_ray.config.run import METHODS, RunConfig


def reference() -> str:
    """One table a section; settings that change results are marked, for changing one makes a new run."""
    lines = [
        "# Settings",
        "",
        "A setting marked ● changes results: a run folder made with another value is refused. The others say where or",
        "how fast and may change from one start to the next. `--set section.setting=value` overrides the file.",
        "`extends: other.yaml` in a file takes the settings of another one, by its path from the first one's folder.",
        "",
    ]
    for path, section in _sections(RunConfig, ""):
        title = path.rstrip(".") or "top level"
        title = title.replace("[].", "[]")
        lines += [f"## {title}", "", "| setting | default | | what it is |", "|---|---|---|---|"]
        for name, field in section.model_fields.items():
            if _section(field) is None:
                mark = "" if is_operational(field) else "●"
                text = " ".join((field.description or "").split()).replace("|", "\\|")
                lines.append(f"| `{path}{name}` | `{_default(field)}` | {mark} | {text} |")
            else:
                lines.append(f"| `{path}{name}` | | | {field.description} See below. |")
        lines.append("")
        if section is RunConfig:
            lines += _methods()
    return "\n".join(lines)


def _methods() -> list[str]:
    """What each method sets, for those that set anything."""
    lines = ["## methods", "", "| `method` | setting | default |", "|---|---|---|"]
    for method, defaults in METHODS.items():
        lines += [f"| {method} | `{name}` | `{json.dumps(value)}` |" for name, value in defaults.items()]
    return [*lines, ""]


def _sections(section: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, section
    for name, field in section.model_fields.items():
        inner = _section(field)
        if inner is not None:
            many = "" if inner is field.annotation else "[]"
            yield from _sections(inner, f"{path}{name}{many}.")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind: Any = field.annotation
    if get_origin(kind) is tuple:  # a list of sections
        kind = get_args(kind)[0]
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return json.dumps(value, ensure_ascii=False, default=str)
