"""Files that carry the hash of their own content, so that one flipped byte in them is found.

A sealed record is JSON with its hash among its keys. A run's settings are YAML for people. Their first line carries the
hash of the rest, and a copy lies beside the file. So an empty or cut-off file is named as damaged and never taken for
changed settings. The copy stands in for it. Settings without that line were written by hand and are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import yaml

from tailor_ray.errors import CorruptionError
from tailor_ray.storage.store import Store

log = logging.getLogger(__name__)
SEAL = re.compile(rb"# the settings of this run; sha256 of what follows: ([0-9a-f]{64})\n")


def seal(record: Mapping[str, Any]) -> bytes:
    """JSON text with the hash of its own canonical form."""
    plain = json.loads(json.dumps(record))
    plain["sealed"] = hashlib.sha256(canonical(plain)).hexdigest()
    return json.dumps(plain, indent=1, ensure_ascii=False).encode()


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The record that `seal` made `data` of.

    Raises CorruptionError naming `where` when it is cut off or its hash does not match.
    """
    try:
        record = json.loads(data)
        sealed = record.pop("sealed")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CorruptionError(f"{where} is cut off or not a sealed record; delete it to do its work again") from None
    if hashlib.sha256(canonical(record)).hexdigest() != sealed:
        raise CorruptionError(f"{where} does not match its own hash; delete it to do its work again")
    return record


def canonical(value: Any) -> bytes:
    """The same bytes for the same content, whatever the order of keys."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def write_settings(store: Store, name: str, text: str) -> None:
    """Write the YAML `text` as the file `name`.

    Its copy is written first: whatever happens, one of the two is whole.
    """
    body = text.encode()
    data = b"# the settings of this run; sha256 of what follows: %s\n" % hashlib.sha256(body).hexdigest().encode()
    store.write_bytes(f"{name}.copy", data + body)
    store.write_bytes(name, data + body)


def read_settings(store: Store, name: str) -> dict[str, Any]:
    """The settings, of the copy where the file is damaged, which is logged.

    Raises FileNotFoundError where there is no such file, and CorruptionError where the copy is no better.
    """
    where = f"{store.uri}/{name}"
    try:
        return _parsed(store.read_bytes(name), where)
    except CorruptionError as error:
        try:
            found = _parsed(store.read_bytes(f"{name}.copy"), where)
        except (CorruptionError, FileNotFoundError):
            raise error from None
        log.warning("%s; its copy %s is read instead", error, f"{name}.copy")
        return found


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    seal = SEAL.match(data)
    todo = "restore it; or delete it, and the next `tailor-ray run` writes it from the settings it is given"
    if seal and hashlib.sha256(data[seal.end() :]).hexdigest().encode() != seal[1]:
        raise CorruptionError(f"{where} is damaged: it is not what was written (cut off or changed); {todo}")
    try:
        settings = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CorruptionError(f"{where} is damaged: {' '.join(str(error).split())}; {todo}") from None
    if not isinstance(settings, dict) or not settings:
        raise CorruptionError(f"{where} is damaged: it holds no settings; {todo}")
    return settings
