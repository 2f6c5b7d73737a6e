"""`Manifest`: the commit record of a stage, written last.

It names the stage's inputs by hash, and what the stage made by one hash over its parts' records and by the hash of the
model it left. It is sealed by its own hash. So a stage is found done without reading its parts, and whoever reads one
checks it: records against the manifest, rows against their record.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from tailor_ray.errors import CorruptionError, RunFolderError
from tailor_ray.storage.parts import Part, PartsDigest, committed_parts, part_name
from tailor_ray.storage.seal import canonical, seal, unseal
from tailor_ray.storage.store import Store

NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a stage did. `spec` hashes the `settings` that change its result, `inputs` maps stages to their digests.

    `parts` holds a digest for each prefix, `model` the sha256 of the model that the stage left, if it left one.
    """

    stage: str
    round: int
    spec: str
    inputs: dict[str, str]
    parts: dict[str, PartsDigest]
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """What later stages name as their input: the content that was made, not the time it took."""
        content = {
            "stage": self.stage,
            "round": self.round,
            "spec": self.spec,
            "inputs": self.inputs,
            "parts": {prefix: parts.sha256 for prefix, parts in self.parts.items()},
            "model": self.model,
        }
        return hashlib.sha256(canonical(content)).hexdigest()


def commit_manifest(store: Store, manifest: Manifest) -> None:
    store.write_bytes(NAME, seal(asdict(manifest)))


def read_manifest(store: Store) -> Manifest | None:
    """The stage's manifest, None when it never committed.

    Raises CorruptionError when it is damaged, and RunFolderError when version 0.1 wrote it.
    """
    if not store.exists(NAME):
        return None
    data = unseal(store.read_bytes(NAME), f"{store.uri}/{NAME}")
    if "parts" not in data:
        raise RunFolderError(
            f"{store.uri}/{NAME} was written by version 0.1 of tailor_ray, whose run folders this version does not "
            "read; give this run another name (--name)"
        )
    parts = {prefix: PartsDigest(**digest) for prefix, digest in data.pop("parts").items()}
    return Manifest(parts=parts, **data)


def stage_parts(store: Store, prefix: str) -> list[Part]:
    """The parts of a committed stage by index.

    Raises CorruptionError naming what is missing, damaged or another than the manifest says.
    """
    manifest = read_manifest(store)
    if manifest is None or prefix not in manifest.parts:
        raise CorruptionError(f"{store.uri} has no manifest that names parts {prefix}-*: the stage is not committed")
    wanted, parts = manifest.parts[prefix], committed_parts(store, prefix, verify=False)
    missing = sorted(set(range(wanted.count)) - {part.index for part in parts})
    if missing:
        raise CorruptionError(
            f"{store.uri}/{part_name(prefix, missing[0])}.json is missing or damaged ({len(missing)} such parts), but "
            f"its stage's manifest counts it; restore it, or delete the folder {store.uri} to do this stage again"
        )
    if PartsDigest.of(parts) != wanted:
        raise CorruptionError(
            f"the parts {prefix}-* of {store.uri} are not those that its manifest was written for; restore them, or "
            "delete that folder to do this stage again"
        )
    return parts
