"""`Store`: one folder on any pyarrow filesystem, with atomic writes.

In: paths relative to the folder, with `/`. Out: bytes. On a local filesystem a write is a temporary file, fsync and
rename. Elsewhere it is a single put, atomic by the service's contract. A store that carries a guard asks it before
each change. So a driver which lost its lease cannot write any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
import pyarrow.fs as pafs
from filelock import FileLock
from obstore.exceptions import AlreadyExistsError
from obstore.store import from_url

from tailor_ray.errors import ConfigError, masked

Guard = Callable[[], None]
FOLDERS_KEPT = 4  # copies of remote folders on a node: two checkpoints, a student and its float32 weights


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One committed file: path relative to the store that lists it, and what it must hash to."""

    path: str
    sha256: str
    bytes: int
    rows: int | None = None


class Store:
    """A folder for a run's files. Cheap to make, picklable, safe to use from threads."""

    def __init__(self, filesystem: pafs.FileSystem, root: str, uri: str, guard: Guard | None = None) -> None:
        self.filesystem = filesystem
        self.root = root
        self.uri = uri
        self._guard = guard

    @classmethod
    def open(cls, uri: str) -> Store:
        """Open, and make on first write, the folder at a local path or filesystem URI.

        Raises ConfigError when the scheme is unknown or the URI is malformed.
        """
        if not re.match(r"^\w[\w+.-]*://", uri):
            root = str(Path(uri).expanduser().resolve())
            return cls(pafs.LocalFileSystem(), root, root)
        if masked(uri) != uri:
            raise ConfigError(
                f"storage {masked(uri)!r} carries a key; give keys by the environment (AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, GOOGLE_APPLICATION_CREDENTIALS), where no log shows them"
            )
        try:
            filesystem, root = pafs.FileSystem.from_uri(uri)
        except (ValueError, OSError) as error:
            raise ConfigError(f"storage {uri!r} cannot be opened: {error}; give a local folder or a URI") from None
        if filesystem.type_name in ("s3", "gcs", "abfs") and (not root or root.startswith("/")):
            raise ConfigError(f"storage {uri!r} names no bucket; give it as s3://BUCKET/folder")
        return cls(filesystem, root.rstrip("/"), uri)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.uri, self._guard)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def child(self, *names: str) -> Store:
        base, mark, query = self.uri.partition("?")  # s3://bucket/run?endpoint_override=… keeps its query
        uri = "/".join((base.rstrip("/"), *names)) + mark + query
        return Store(self.filesystem, "/".join((self.root, *names)), uri, self._guard)

    def guarded(self, guard: Guard) -> Store:
        """The same folder, guarded.

        `guard` is called before each change, and raises LeaseLost when the lease is lost.
        """
        return Store(self.filesystem, self.root, self.uri, guard)

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, name: str = "") -> str:
        """The path for the filesystem object; for a local store an absolute local path."""
        return f"{self.root}/{name}" if name else self.root

    def exists(self, name: str) -> bool:
        return self.filesystem.get_file_info(self.path(name)).type != pafs.FileType.NotFound

    def size(self, name: str) -> int:
        info = self.filesystem.get_file_info(self.path(name))
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(f"{self.uri}/{name}")
        return info.size

    def files(self, name: str = "") -> list[str]:
        """Names of the files directly below the folder `name`, sorted; empty when there is none."""
        return self._names(name, pafs.FileType.File)

    def folders(self, name: str = "") -> list[str]:
        return self._names(name, pafs.FileType.Directory)

    def _names(self, name: str, kind: pafs.FileType) -> list[str]:
        selector = pafs.FileSelector(self.path(name), allow_not_found=True)
        try:
            found = self.filesystem.get_file_info(selector)
        except FileNotFoundError:  # pyarrow 26 raises it of a folder that comes to be while it looks: it is there now
            found = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == kind)

    def read_bytes(self, name: str) -> bytes:
        """The file's content; raises FileNotFoundError."""
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def read_json(self, name: str) -> Any:
        """The file's value; raises FileNotFoundError, and ValueError when it is no JSON.

        These files are replaced while others read them. pyarrow asks an object store for the size and then for the
        content, and so may get neither the old nor the new one whole; one request gets one of them.
        """
        if self.is_local:
            return json.loads(self.read_bytes(name))
        return json.loads(bytes(obstore.get(self._objects(), name).bytes()))

    def write_bytes(self, name: str, data: bytes | memoryview) -> FileEntry:
        """Write `data` as the file `name`, atomically; an existing file is replaced.

        Returns its entry. Raises LeaseLost where this store's lease is no longer ours, as all that changes files does.
        """
        self.check()
        if self.is_local:
            _write_local(Path(self.path(name)), data)
        else:
            with self.filesystem.open_output_stream(self.path(name)) as stream:
                stream.write(data)
        return FileEntry(name, hashlib.sha256(data).hexdigest(), len(data))

    def write_json(self, name: str, value: Any) -> FileEntry:
        return self.write_bytes(name, json.dumps(value, indent=1, ensure_ascii=False).encode())

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` only if there is no file `name`.

        Returns False, with nothing changed, when there is one.
        """
        self.check()
        if self.is_local:
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            try:
                os.link(temporary, target)  # fails when the name is taken, and the content is already whole
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            return True
        try:
            obstore.put(self._objects(), name, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def _objects(self) -> Any:
        """The folder for obstore, which does in one request what pyarrow does in several or not at all."""
        return from_url(self.uri.partition("?")[0])

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all below it; nothing happens when there is none."""
        self.check()
        info = self.filesystem.get_file_info(self.path(name))
        if info.type == pafs.FileType.File:
            self.filesystem.delete_file(self.path(name))
        elif info.type == pafs.FileType.Directory:
            self.filesystem.delete_dir(self.path(name))

    def upload_folder(self, local: Path, name: str) -> list[FileEntry]:
        """Copy the files of the folder `local` to the folder `name`.

        Returns their entries, with paths relative to this store.
        """
        files = sorted(path for path in local.rglob("*") if path.is_file())
        return [self.upload_file(file, f"{name}/{file.relative_to(local).as_posix()}") for file in files]

    def upload_file(self, file: Path, name: str) -> FileEntry:
        """Copy a local `file` to `name`, atomically; in place it is only hashed.

        Returns its entry.
        """
        self.check()
        target = Path(self.path(name))
        if not self.is_local:
            pafs.copy_files(str(file), self.path(name), pafs.LocalFileSystem(), self.filesystem)
        elif target.resolve() != file.resolve():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.tmp")
            shutil.copyfile(file, temporary)
            _sync_and_rename(temporary, target)
        return FileEntry(name, file_sha256(file), file.stat().st_size)

    def local_folder(self, name: str) -> Path:
        """The folder `name` as a local path.

        A remote one is copied to this node's cache, once per node. Sizes and times of its files are the copy's key.
        """
        if self.is_local:
            return Path(self.path(name))
        selector = pafs.FileSelector(self.path(name), recursive=True)
        infos = [info for info in self.filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
        stamp = repr(sorted((info.path, info.size, str(info.mtime)) for info in infos))
        digest = hashlib.sha256(f"{self.uri}/{name}{stamp}".encode()).hexdigest()[:24]
        target = node_cache() / "folders" / digest
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / ".lock"):  # one copy a node, however many processes ask
            if not target.exists():
                temporary = target.with_name(f"{digest}.tmp")
                shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
                temporary.mkdir()
                pafs.copy_files(self.path(name), str(temporary), self.filesystem, pafs.LocalFileSystem())
                temporary.rename(target)
            os.utime(target)
            used = sorted((path for path in target.parent.iterdir() if path.is_dir()), key=lambda p: p.stat().st_mtime)
            for old in used[:-FOLDERS_KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        return target

    def hash_file(self, name: str) -> str:
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(self.path(name)) as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    def check(self) -> None:
        """Raise LeaseLost when this store's lease is no longer ours."""
        if self._guard is not None:
            self._guard()


def node_cache() -> Path:
    """This node's scratch folder for copies of remote files and the local half of the ledger."""
    base = os.environ.get("TAILOR_RAY_CACHE") or Path.home() / ".cache" / "tailor_ray"
    return Path(base).expanduser().resolve()


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _reopen(uri: str, guard: Guard | None) -> Store:
    store = Store.open(uri)
    return store.guarded(guard) if guard is not None else store


def _write_local(target: Path, data: bytes | memoryview) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.write_bytes(data)
        temporary.chmod(0o644)
        _sync_and_rename(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync_and_rename(temporary: Path, target: Path) -> None:
    """Content first, then the name, then the folder entry: a crash leaves the old file or the new one."""
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
