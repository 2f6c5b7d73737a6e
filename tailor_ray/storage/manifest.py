"""`Manifest`: the commit record of a stage, written last.

It names the stage's inputs by hash and its files by sha256 and rows, and is sealed by its own hash, so a byte
flipped in it or in any file that it names is found before anything is built on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tailor_ray.errors import CorruptionError
from tailor_ray.storage.store import FileEntry, Store

NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a stage did. `spec` hashes the settings that change its result, `inputs` maps names to hashes."""

    stage: str
    round: int
    spec: str
    inputs: dict[str, str]
    files: tuple[FileEntry, ...]
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """What later stages name as their input: the files' content, not the time it took."""
        content = {
            "stage": self.stage,
            "round": self.round,
            "spec": self.spec,
            "inputs": self.inputs,
            "files": [(entry.path, entry.sha256) for entry in self.files],
        }
        return hashlib.sha256(_canonical(content)).hexdigest()


def commit_manifest(store: Store, manifest: Manifest) -> None:
    store.write_bytes(NAME, seal(asdict(manifest)))


def read_manifest(store: Store) -> Manifest | None:
    """The stage's manifest, None when it never committed; raises CorruptionError when it is damaged."""
    if not store.exists(NAME):
        return None
    data = unseal(store.read_bytes(NAME), f"{store.uri}/{NAME}")
    files = tuple(FileEntry(**entry) for entry in data.pop("files"))
    return Manifest(files=files, **data)


def verify_files(store: Store, manifest: Manifest) -> None:
    """Hash every file that the manifest names; raises CorruptionError naming the first that differs."""
    for entry in manifest.files:
        if not store.exists(entry.path):
            raise CorruptionError(f"{store.uri}/{entry.path} is missing, but its stage's manifest lists it")
        if store.hash_file(entry.path) != entry.sha256:
            raise CorruptionError(
                f"{store.uri}/{entry.path} does not have the hash that its manifest records: it was changed or "
                f"damaged; restore it, or delete the folder {store.uri} to do this stage again"
            )


def seal(record: Mapping[str, Any]) -> bytes:
    """JSON text with the hash of its own canonical form."""
    plain = json.loads(json.dumps(record))
    plain["sealed"] = hashlib.sha256(_canonical(plain)).hexdigest()
    return json.dumps(plain, indent=1, ensure_ascii=False).encode()


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The inverse of `seal`; raises CorruptionError naming `where` when the hash does not match."""
    try:
        record = json.loads(data)
        sealed = record.pop("sealed")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CorruptionError(f"{where} is cut off or not a sealed record; delete it to do its work again") from None
    if hashlib.sha256(_canonical(record)).hexdigest() != sealed:
        raise CorruptionError(f"{where} does not match its own hash; delete it to do its work again")
    return record


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
