"""Makes kuberay_fields.json: `python -m tests.cluster.kuberay_fields FOLDER OPERATOR`.

FOLDER holds the operator's Go types (`ray-operator/apis/ray/v1` of its sources), OPERATOR says which state of it
that is. Of each type that a spec reaches, the table has facts alone: a field's name, its type, whether it is required,
and the values that it may take. Types of Kubernetes are named as its Python client names them.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubernetes import client

TABLE = Path(__file__).with_name("kuberay_fields.json")
SPECS = ("RayClusterSpec", "RayJobSpec", "RayServiceSpec")
SCALARS = {"string": "str", "bool": "bool", "int32": "int", "int64": "int", "float32": "float"}
STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r'\s*(?:\w+\s+)?(\S+)\s+`json:"(\w*)(,[^"]*)?"')
NAMED = re.compile(r"^((?://.*\n)*)type (\w+) string$", re.MULTILINE)
ENUM = re.compile(r"\+kubebuilder:validation:Enum=(\S+)")
ONE_OF = re.compile(r"rule=\"self in \[([^\]]*)\]\"")


def fields_of(source: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The table's types: what each spec reaches in the Go source.

    `source` is the text of one or more files. Raises KeyError where a type is used and not there.
    """
    structs: dict[str, str] = {match[1]: match[2] for match in STRUCT.finditer(source)}
    names = {match[2]: _values(match[1], match[2], source) for match in NAMED.finditer(source)}
    found: dict[str, dict[str, dict[str, Any]]] = {}
    left = [spec for spec in SPECS if spec in structs]
    while left:
        name = left.pop()
        if name not in found:
            found[name] = dict(_fields(name, structs, names))
            used = {kind for field in found[name].values() for kind in re.findall(r"\w+", field["type"])}
            left += sorted(used & structs.keys())
    return dict(sorted(found.items()))


def _values(markers: str, name: str, source: str) -> list[str]:
    """What a named string may be: by its marker, else by its constants; empty where it may be anything."""
    if enum := ENUM.search(markers):
        return enum[1].split(";")
    return re.findall(rf'\b{name}\s+= "(\w+)"', source)


def _fields(name: str, structs: dict[str, str], names: dict[str, list[str]]) -> Iterator[tuple[str, dict[str, Any]]]:
    markers = ""
    for line in structs[name].splitlines():
        field = FIELD.match(line)
        if field is None:
            markers = f"{markers}{line}\n" if line.strip().startswith("//") else ""
            continue
        kind, key, options = field[1], field[2], field[3] or ""
        if "inline" in options:
            yield from _fields(kind, structs, names)
        else:
            plain = kind.lstrip("*")
            about: dict[str, Any] = {"type": "str" if plain in names else _python(plain, structs)}
            if "omitempty" not in options and "+optional" not in markers:
                about["required"] = True
            if allowed := _allowed(markers) or names.get(plain):
                about["enum"] = allowed
            yield key, about
        markers = ""


def _allowed(markers: str) -> list[str]:
    if enum := ENUM.search(markers):
        return enum[1].split(";")
    one_of = ONE_OF.search(markers)
    return re.findall(r"'([^']*)'", one_of[1]) if one_of else []


def _python(kind: str, structs: dict[str, str]) -> str:
    """A Go type as an annotation; Kubernetes' strings and quantities are its client's `str`."""
    kind = kind.lstrip("*")
    if kind.startswith("[]"):
        return f"list[{_python(kind[2:], structs)}]"
    if kind.startswith("map[string]"):
        return f"dict[str, {_python(kind.removeprefix('map[string]'), structs)}]"
    package, _, name = kind.rpartition(".")
    if package:
        return f"V1{name}" if hasattr(client, f"V1{name}") else "str"
    return kind if kind in structs else SCALARS[kind]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the table of KubeRay's fields.")
    parser.add_argument("folder", type=Path, help="with raycluster_types.go, rayjob_types.go and rayservice_types.go")
    parser.add_argument("operator", help="which state of the operator the folder is of")
    arguments = parser.parse_args()
    source = "\n".join(path.read_text() for path in sorted(arguments.folder.glob("*_types.go")))
    types = ",\n".join(_lines(name, fields) for name, fields in fields_of(source).items())
    TABLE.write_text(f'{{"operator": {json.dumps(arguments.operator)},\n "types": {{\n{types}\n}}}}\n')


def _lines(name: str, fields: dict[str, dict[str, Any]]) -> str:
    """A line a field."""
    inside = ",\n".join(f"   {json.dumps(key)}: {json.dumps(about)}" for key, about in fields.items())
    return f"  {json.dumps(name)}: {{\n{inside}}}"


if __name__ == "__main__":
    main()
