"""`ModelRef`: a model by what it is, and `resolve`, which finds its files on the node that asks.

In: a local folder, a hub id with its revision, or a run-storage URI. Out: a local path, in the process that needs it.

Always holds. A reference names each file by its sha256, so every node works with the same bytes or says which file
differs. A model in remote storage is copied to a node once, however many processes ask. It is hashed as it is copied.
Another folder is hashed once per node, and again when its files' sizes or times change. A node keeps the copies that
were asked for last.

A swap of weights on n nodes reads the storage n times, once for each node. Every engine of a node then reads the node's
copy, which the first of them leaves in the page cache. Where storage is local nothing is copied.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow.fs as pafs
from filelock import FileLock

from tailor_ray.errors import CorruptionError, ModelError
from tailor_ray.models.folder import MODEL_FILES, check_model, content_sha256, is_model_file, model_files
from tailor_ray.once import FIRST_USE
from tailor_ray.storage import FileEntry, Store, in_threads
from tailor_ray.storage.commits import seal, unseal
from tailor_ray.storage.store import file_sha256, node_cache

RECORD = "student.json"
CONFIG = "config.json"
CHUNK = 8 << 20  # bytes; an object store answers each read in some 20 ms
KEPT_COPIES = 6  # of models in remote storage on a node: base, two rounds' students, and what else is served


@dataclass(frozen=True, slots=True)
class ModelRef:
    """`uri` is an absolute local path, a hub id, or a filesystem URI; `files` are the model's, by name.

    A local path is one that every node sees alike (one machine, or a shared disk); else see `publish`.
    """

    uri: str
    files: tuple[FileEntry, ...]
    revision: str | None = None  # of a hub id: the commit

    @property
    def sha256(self) -> str:
        return content_sha256({entry.path: entry.sha256 for entry in self.files})

    @property
    def weight_bytes(self) -> int:
        return sum(entry.bytes for entry in self.files if entry.path.endswith((".safetensors", ".bin")))

    @property
    def is_local(self) -> bool:
        return self.uri.startswith("/")

    @classmethod
    def uploaded(cls, store: Store, name: str, entries: Sequence[FileEntry]) -> ModelRef:
        """Of the folder `name` of `store`.

        `entries` are those that `Store.upload_folder` returned for it; files that are not the model's are left out.
        """
        files = [replace(entry, path=entry.path.removeprefix(f"{name}/")) for entry in entries]
        return cls(store.child(*name.split("/")).uri, tuple(file for file in files if is_model_file(file.path)))

    def __str__(self) -> str:
        return self.uri + (f"@{self.revision[:12]}" if self.revision else "")


def identify(model: str, revision: str | None = None, setting: str = "student.model") -> ModelRef:
    """The reference of what a setting names, found and checked on this node.

    `model` is a local folder, a hub id or a storage URI, and `revision` a hub id's branch, tag or commit. Raises
    ModelError naming `setting` when there is no such model, or it is no causal LM.
    """
    uri, commit = model, None
    if "://" in model and not Store.open(model).is_local:
        uri = model.rstrip("/")
        files = _identify_remote(Store.open(model), model, setting)
        folder = resolve(ModelRef(uri, files))  # what is known of it outlives its copy
    else:
        folder = Path(Store.open(model).path()) if "://" in model else Path(model).expanduser().resolve()
        uri = str(folder)
        if not folder.is_dir():
            folder = _download(model, revision, setting)
            uri, commit = model, folder.name if folder.parent.name == "snapshots" else revision
        files = _hashed(folder)
    check_model(folder, setting)
    return ModelRef(uri, files, commit)


def resolve(ref: ModelRef, verify: bool = False) -> Path:
    """The model's folder on this node; fetched, and checked, by the first process that asks.

    With `verify` every byte is read again, whatever this node knows of files with these sizes and times. Raises
    ModelError when this node cannot reach it, and CorruptionError when its files are not those of the reference.
    """
    if "://" in ref.uri:
        store = Store.open(ref.uri)
        if not store.is_local:
            return _cached(store, ref, verify)
        folder = Path(store.path())
    elif ref.is_local:
        folder = Path(ref.uri)
    else:
        folder = _download(ref.uri, ref.revision, "student.model")
    if not folder.is_dir():
        raise ModelError(
            f"the model folder {folder} is not on the node {socket.gethostname()}: nodes that share no disk need the "
            "run's storage as a URI (set `storage` to s3://…), to which a local student is copied"
        )
    _compare(ref, _read(folder) if verify else _hashed(folder), str(folder))
    return folder


def publish(ref: ModelRef, store: Store, name: str) -> ModelRef:
    """A reference that every node of the run can resolve.

    A local folder is copied to the folder `name` of `store` where that is remote storage, unless it is there already.
    Where run storage is a local path every node sees this machine's paths, so it stays where it lies.
    """
    if not ref.is_local or store.is_local:
        return ref
    if not store.exists(f"{name}/{CONFIG}"):
        files = model_files(resolve(ref))
        in_threads(lambda path: store.upload_file(path, f"{name}/{path.name}"), [f for f in files if f.name != CONFIG])
        store.upload_file(resolve(ref) / CONFIG, f"{name}/{CONFIG}")  # the last: with it the copy is whole
    return ModelRef(store.child(*name.split("/")).uri, ref.files)


def write_model(folder: Store, ref: ModelRef) -> None:
    """Record in `folder` which model a stage left.

    One below the stage's own folder is found there wherever the run is moved to.
    """
    inside = ref.uri == folder.child("student").uri
    record = {"uri": None if inside else ref.uri, "revision": ref.revision, "files": [asdict(e) for e in ref.files]}
    folder.write_bytes(RECORD, seal(record))


def read_model(folder: Store) -> ModelRef:
    """The model that a stage left, by its record in `folder`.

    Raises CorruptionError when the record is missing or damaged.
    """
    try:
        record = unseal(folder.read_bytes(RECORD), f"{folder.uri}/{RECORD}")
    except FileNotFoundError:
        raise CorruptionError(f"{folder.uri}/{RECORD} is missing, but its stage is committed; restore it") from None
    files = tuple(FileEntry(**entry) for entry in record["files"])
    return ModelRef(record["uri"] or folder.child("student").uri, files, record["revision"])


def _identify_remote(store: Store, model: str, setting: str) -> tuple[FileEntry, ...]:
    """The files of a model in remote storage, copied to this node for it; once for the same sizes and times."""
    infos = store.filesystem.get_file_info(pafs.FileSelector(store.path(), allow_not_found=True))
    found = sorted((i.base_name, i.size, i.mtime_ns) for i in infos if i.is_file and is_model_file(i.base_name))
    if not any(name == CONFIG for name, _, _ in found):
        raise ModelError(f"{setting}={model!r} has no config.json; it must name the folder of a Hugging Face model")

    def fetch() -> tuple[FileEntry, ...]:
        temporary, files = _fetched(store, [name for name, _, _ in found])
        with _locked(_copy_of(files)):
            _keep(temporary, _copy_of(files))
        return files

    return _remembered(repr((store.uri, found)), fetch)


def _cached(store: Store, ref: ModelRef, verify: bool) -> Path:
    """This node's copy of a model in remote storage, named by its content; a damaged copy is fetched again."""
    target = _copy_of(ref.files)
    with _locked(target):
        if verify and target.exists():
            try:
                _compare(ref, _read(target), str(target))
            except CorruptionError:
                shutil.rmtree(target)
        if not target.exists():
            temporary, files = _fetched(store, [entry.path for entry in ref.files])
            try:
                _compare(ref, files, store.uri)
                _keep(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        target.touch()
    _remove_unused_copies()
    return target


def _remove_unused_copies() -> None:
    """All but those that were asked for last; who has files of one open keeps them."""
    folder = node_cache() / "models"
    with _locked(folder / "unused"):
        copies = (path for path in folder.iterdir() if path.is_dir() and path.suffix != ".tmp")
        used = sorted((path.stat().st_mtime_ns, path) for path in copies)
        for last, path in used[:-KEPT_COPIES]:
            with _locked(path):
                if path.stat().st_mtime_ns == last:  # nobody asked for it since
                    shutil.rmtree(path)


def _copy_of(files: tuple[FileEntry, ...]) -> Path:
    sha256 = content_sha256({entry.path: entry.sha256 for entry in files})
    return node_cache() / "models" / sha256[:32]


def _keep(temporary: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(temporary)
    else:
        temporary.rename(target)


def _fetched(store: Store, names: list[str]) -> tuple[Path, tuple[FileEntry, ...]]:
    """A copy of these files under a name of its own, several at a time, and what they hash to."""
    temporary = node_cache() / "models" / f"{uuid.uuid4().hex}.tmp"
    temporary.mkdir(parents=True)

    def fetch(name: str) -> FileEntry:
        """Copy one file and hash it on the way."""
        digest, size = hashlib.sha256(), 0
        try:
            with store.filesystem.open_input_stream(store.path(name)) as source, (temporary / name).open("wb") as file:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
                    size += len(chunk)
        except FileNotFoundError:
            raise CorruptionError(
                f"{store.uri}/{name} is missing, but the model's record names it; restore it"
            ) from None
        return FileEntry(name, digest.hexdigest(), size)

    try:
        return temporary, tuple(in_threads(fetch, names))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _hashed(folder: Path) -> tuple[FileEntry, ...]:
    """The files of a local folder with their hashes."""
    files = model_files(folder)
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]

    return _remembered(repr((str(folder), stats)), lambda: _read(folder))


def _read(folder: Path) -> tuple[FileEntry, ...]:
    files = model_files(folder)
    return tuple(in_threads(lambda path: FileEntry(path.name, file_sha256(path), path.stat().st_size), files))


def _remembered(state: str, find: Callable[[], tuple[FileEntry, ...]]) -> tuple[FileEntry, ...]:
    """What `find` says of files in this state, asked once a node."""
    known = node_cache() / "models" / f"{hashlib.sha256(state.encode()).hexdigest()[:32]}.json"
    with _locked(known):
        if known.exists():
            try:
                return tuple(FileEntry(**entry) for entry in unseal(known.read_bytes(), str(known))["files"])
            except CorruptionError:
                known.unlink()  # a node that went down while it was written: find out again
        files = find()
        known.write_bytes(seal({"files": [asdict(entry) for entry in files]}))
    return files


def _compare(ref: ModelRef, found: tuple[FileEntry, ...], where: str) -> None:
    wanted, there = ({entry.path: entry.sha256 for entry in entries} for entries in (ref.files, found))
    other = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if other:
        raise CorruptionError(
            f"{where}/{other[0]} is not the file that this run was begun with: it was changed, damaged or removed "
            f"({len(other)} of {len(wanted)} files differ); put it back, or give this run another name (--name)"
        )


def _download(model: str, revision: str | None, setting: str) -> Path:
    """A hub id's files in this node's Hugging Face cache."""
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError(
            f"{setting}={model!r} is neither a local folder nor a hub id (owner/name) nor a storage URI"
            f"{' nor `tiny`' if setting == 'student.model' else ''}; set {setting} to one of these"
        )
    with FIRST_USE:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(MODEL_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{setting}={model!r} could not be loaded from the hub ({type(error).__name__}: {error}); "
            "check the name, its revision and the network, or give a local folder"
        ) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of this node at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield
