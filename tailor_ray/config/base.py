"""What every configuration section shares: strictness, documentation, and which settings change results."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from tailor_ray.errors import ConfigError


class Operational:
    """Marker in `Annotated[T, OPERATIONAL]`: the setting says where or how fast, never what comes out.

    Operational settings are left out of the run's hash, so changing one resumes the run instead of refusing it.
    """


OPERATIONAL = Operational()

# Settings of earlier versions that nobody set: what they are now. All of them said where or how fast.
CONSTANTS = {
    "teacher.batch_max_mib": "190 MiB",
    "training.checkpoint_every_s": "60 s",
    "training.keep_checkpoints": "2",
    "training.max_shard_size": "4 GB",
}


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, each field documented by the string below it."""

    # Defaults are validated too: a 10 that stands for 10.0 would hash otherwise than the 10.0 that YAML brings back.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


def is_operational(field: FieldInfo) -> bool:
    return any(isinstance(item, Operational) for item in field.metadata)


def result_settings(section: BaseModel) -> dict[str, Any]:
    """The settings of `section` that change results, as plain data.

    Nested sections are mappings in their places, words of an enum are texts.
    """
    out: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if is_operational(field):
            continue
        value = getattr(section, name)
        out[name] = result_settings(value) if isinstance(value, BaseModel) else _plain(value)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return result_settings(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def explain(error: ValidationError, root: type[BaseModel], source: str) -> ConfigError:
    """Pydantic's errors on a `root` section as one error that begins with `source`.

    Each has a line with the setting, the rule, and the value or the nearest known name. What looks like a key in a
    value is masked.
    """
    lines = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        if path in CONSTANTS:
            lines.append(f"{path}: this setting is a constant now ({CONSTANTS[path]}); remove it")
        elif item["type"] == "extra_forbidden":
            known = known_keys(root, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            lines.append(f"{path}: unknown setting; {hint}")
        elif item["type"] == "missing":
            lines.append(f"{path}: this setting is required and was not given")
        else:
            message = item["msg"].removeprefix("Value error, ")
            # user info or a query in a URL is likely a key
            given = re.sub(r"\?\w+=[^'\"]*", "?***", re.sub(r"//[^/@]*@", "//***@", repr(item["input"])))
            shown = "" if isinstance(item["input"], dict | BaseModel) else f" (given: {given})"
            lines.append(f"{path + ': ' if path else ''}{message}{shown}")
    return ConfigError(f"{source} is not a valid configuration:\n  " + "\n  ".join(lines))


def known_keys(root: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """Names of the settings of the section at `path` below `root`, in order of the alphabet.

    Numbers in `path`, of a list, are passed over.
    """
    section: Any = root
    for part in path:
        fields = getattr(section, "model_fields", {})
        if part not in fields:
            continue  # a list index or the tag of a union
        section = section_of(fields[part].annotation)
    return sorted(getattr(section, "model_fields", {}))


def section_of(annotation: Any) -> Any:
    """The section class inside an `annotation` like `X`, `X | None`, `list[X]` or `dict[str, X]`; None without one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = section_of(argument)
        if found is not None:
            return found
    return None


# What a run of one's own sets first.
FIRST = (
    *("task.name", "task.path", "student.model", "student.prompt_style", "teacher.teachers[].base_url"),
    *("teacher.teachers[].model", "teacher.budget_usd"),
    *("training.epochs", "training.learning_rate", "rounds.max_rounds"),
)


def reference(root: type[BaseModel], methods: Mapping[str, Mapping[str, Any]]) -> str:
    """All settings of `root` as Markdown: the ten to start with, one table per section, and what each method sets.

    `methods` has a method's defaults of other settings by its name. Settings that change results are marked, for
    changing one makes a new run.
    """
    sections = list(_sections(root, "", False))
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
        if section is root:
            lines += ["## methods", "", "| `method` | setting | default |", "|---|---|---|"]
            for method, defaults in methods.items():
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
