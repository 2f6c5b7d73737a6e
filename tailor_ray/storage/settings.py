"""A run's settings on disk: YAML for people, whose first line carries the hash of the rest, and a copy beside it.

So an empty or cut-off file is named as damaged and never taken for changed settings; the copy stands in for it. A file
without that line was written by hand and is taken as it is.
"""

from __future__ import annotations

import hashlib
import logging
import re
from typing import Any

import yaml

from tailor_ray.errors import CorruptionError
from tailor_ray.storage.store import Store

log = logging.getLogger(__name__)
SEAL = re.compile(rb"# the settings of this run; sha256 of what follows: ([0-9a-f]{64})\n")


def copy_of(name: str) -> str:
    return f"{name}.copy"


def write_settings(store: Store, name: str, text: str) -> None:
    """The copy first: whatever happens, one of the two is whole."""
    body = text.encode()
    data = b"# the settings of this run; sha256 of what follows: %s\n" % hashlib.sha256(body).hexdigest().encode()
    store.write_bytes(copy_of(name), data + body)
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
            found = _parsed(store.read_bytes(copy_of(name)), where)
        except (CorruptionError, FileNotFoundError):
            raise error from None
        log.warning("%s; its copy %s is read instead", error, copy_of(name))
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
