"""A student's weights in float32, beside the folder that is served in less.

In: whole weights by the model's names. Out: `<stage>/<name>-float32/` with one safetensors file per tensor group and a
sealed record of their hashes, written last; read again tensor by tensor, so that no process holds more than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from tailor_ray.errors import CorruptionError
from tailor_ray.models import ModelRef
from tailor_ray.storage import Store
from tailor_ray.storage.seal import seal, unseal
from tailor_ray.storage.store import file_sha256

WHOLE = "-float32"
RECORD = "weights.json"
FILE_BYTES = 4 << 30


def write_whole(store: Store, scratch: Path, name: str, weights: Mapping[str, Tensor]) -> None:
    """As the folder `name` of `store`; `scratch` holds it until it is uploaded."""
    folder = scratch / name
    folder.mkdir(parents=True)
    for number, group in enumerate(_groups(weights)):
        write_tensors(folder / f"{number:05d}.safetensors", {key: tensor.float() for key, tensor in group.items()})
    entries = store.upload_folder(folder, name)
    record = {"files": [{**asdict(entry), "path": entry.path.removeprefix(f"{name}/")} for entry in entries]}
    store.write_bytes(f"{name}/{RECORD}", seal(record))


def whole_of(student: ModelRef) -> Iterator[tuple[str, Tensor]]:
    """The float32 weights beside a trained student, tensor by tensor; none where it has none.

    Raises CorruptionError for a file that is not the one that was written.
    """
    if "/" not in student.uri.strip("/"):
        return
    parent, _, name = student.uri.rstrip("/").rpartition("/")
    store = Store.open(parent)
    record = f"{name}{WHOLE}/{RECORD}"
    if not store.exists(record):
        return
    files = unseal(store.read_bytes(record), f"{parent}/{record}")["files"]
    folder = store.local_folder(f"{name}{WHOLE}")
    for entry in files:
        path = folder / entry["path"]
        if not path.is_file() or file_sha256(path) != entry["sha256"]:
            raise CorruptionError(f"{parent}/{name}{WHOLE}/{entry['path']} is not the file that {RECORD} records")
        yield from read_tensors(path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 — the file is no mapping
            yield name, file.get_tensor(name)


def _groups(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Of about FILE_BYTES; a tensor that several names share is written once."""
    group: dict[str, Tensor] = {}
    seen: set[tuple[int, int]] = set()
    size = 0
    for name, tensor in weights.items():
        place = (tensor.data_ptr(), tensor.numel())
        if not tensor.is_floating_point() or place in seen:
            continue
        seen.add(place)
        group[name] = tensor
        size += 4 * tensor.numel()
        if size >= FILE_BYTES:
            yield group
            group, size = {}, 0
    if group:
        yield group
