"""Sealed records: JSON that carries the hash of its own content, so that one flipped byte in it is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from tailor_ray.errors import CorruptionError


def seal(record: Mapping[str, Any]) -> bytes:
    """JSON text with the hash of its own canonical form."""
    plain = json.loads(json.dumps(record))
    plain["sealed"] = hashlib.sha256(canonical(plain)).hexdigest()
    return json.dumps(plain, indent=1, ensure_ascii=False).encode()


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The inverse of `seal`; raises CorruptionError naming `where` when the hash does not match."""
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
