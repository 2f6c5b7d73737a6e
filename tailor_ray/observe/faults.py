"""Whatever Ray, the filesystem or the network raise, as one sentence: what happened, what is safe, what to do.

In: any exception, or the text of one that a worker process printed. Out: a `TailorError`. Its exit code says who must
act. With 2 it is the user. With 3 the run stopped, and the same command goes on. With 1 it is a bug of ours. One table
tells the kinds apart, by errno and by the words that libraries use. Nothing here imports the libraries.
"""

from __future__ import annotations

import errno
import json
import re
import socket
from dataclasses import dataclass

from tailor_ray.errors import Bug, Stopped, TailorError, UserError, masked

KEPT = "what was committed is kept"
AGAIN = "then run the same command: it goes on there"
PLACES = "`storage`, TAILOR_RAY_CACHE, RAY_TMPDIR or HOME"
LONGEST = 400  # characters of what a library said
LOW_MEMORY = "running low on memory"  # in what Ray's memory monitor says of the processes that it ended


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One kind: recognized by an errno, by the name of an exception's class or base, or by words of its text."""

    what: str
    todo: str
    kind: type[TailorError]
    codes: tuple[int, ...] = ()
    types: tuple[str, ...] = ()
    words: str = ""
    waits: bool = False  # storage may be back in a moment, and nothing but a pause is needed

    def fits(self, error: BaseException) -> bool:
        names = {base.__name__ for base in type(error).__mro__}
        code = error.errno if isinstance(error, OSError) else None
        return code in self.codes or not names.isdisjoint(self.types) or self.fits_text(str(error))

    def fits_text(self, text: str) -> bool:
        return bool(self.words) and re.search(self.words, text, re.IGNORECASE) is not None


# The first that fits counts, so what says more stands before what says less.
FAULTS = (
    FaultKind(
        "a disk is full",
        f"make space there, or point {PLACES} at another disk, {AGAIN}",
        Stopped,
        codes=(errno.ENOSPC, errno.EDQUOT),
        types=("OutOfDiskError",),
        words=r"No space left|quota exceeded|disk is full|disk full|OutOfDiskError|File too large",
    ),
    FaultKind(
        "memory ran out",
        "lower student.max_num_seqs, student.engines or student.kv_cache_gib (student.gpu_memory_utilization on "
        f"GPUs), in training training.micro_batch_tokens, {AGAIN}",
        Stopped,
        codes=(errno.ENOMEM,),
        types=("MemoryError", "OutOfMemoryError", "ObjectStoreFullError"),
        words=r"out of memory|OutOfMemory|can't allocate memory|Cannot allocate memory|\bMemoryError\b"
        r"|No available memory for the cache blocks|less than desired GPU memory",
    ),
    FaultKind(
        "too many files are open",
        f"raise the limit (`ulimit -n 65536`), {AGAIN}",
        Stopped,
        codes=(errno.EMFILE, errno.ENFILE),
        words=r"Too many open files",
    ),
    FaultKind(
        "there are too many processes or threads",
        f"raise the limit (`ulimit -u`, or the container's of processes), {AGAIN}",
        Stopped,
        codes=(errno.EAGAIN,),
        words=r"can't start new thread",
    ),
    FaultKind(
        "a library cannot be loaded",
        "install tailor-ray again; `tailor-ray doctor` says what is missing",
        UserError,
        types=("ImportError",),
        words=r"cannot open shared object file|undefined symbol",
    ),
    FaultKind(
        "a GPU failed",
        f"see `nvidia-smi` and the node's kernel log, {AGAIN}",
        Stopped,
        words=r"CUDA error|CUDA driver|NCCL error|cuDNN error|device-side assert",
    ),
    FaultKind(
        "a port is taken",
        "choose another port, or end what listens there",
        UserError,
        codes=(errno.EADDRINUSE,),
        words=r"Address already in use|address already in use",
    ),
    FaultKind(
        "this machine has no such address",
        "choose an address of this machine (--host)",
        UserError,
        codes=(errno.EADDRNOTAVAIL,),
        words=r"Cannot assign requested address",
    ),
    FaultKind(
        "a place cannot be written",
        f"make it writable for this user, or name another ({PLACES}), {AGAIN}",
        UserError,
        codes=(errno.EROFS,),
        words=r"Read-only file system|readonly database|unable to open database file",
        waits=True,
    ),
    FaultKind(
        "access is refused",
        f"give this user the right to it, or name another place ({PLACES}); for an object store check the credentials "
        f"in the environment of every node, {AGAIN}",
        UserError,
        codes=(errno.EACCES, errno.EPERM),
        types=("PermissionDeniedError",),
        words=r"Permission denied|Operation not permitted|ACCESS_DENIED|AccessDenied|InvalidAccessKeyId"
        r"|SignatureDoesNotMatch|PermissionDenied|No response body\..*403",
    ),
    FaultKind(
        "the Ray cluster refused the token",
        "set RAY_AUTH_MODE and RAY_AUTH_TOKEN (or ~/.ray/auth_token) as on the cluster's nodes",
        UserError,
        types=("AuthenticationError", "UnauthenticatedError"),
        words=r"Unauthenticated|InvalidAuthToken",
    ),
    FaultKind(
        "a name cannot be resolved",
        "check the host's name and the network's name service",
        UserError,
        types=("gaierror",),
        words=r"Name or service not known|nodename nor servname|Temporary failure in name resolution",
    ),
    FaultKind(
        "a path is too long",
        f"choose a shorter one ({PLACES})",
        UserError,
        codes=(errno.ENAMETOOLONG,),
        words=r"File name too long|AF_UNIX path",
    ),
    FaultKind(
        "a path holds a NUL byte",
        "take it out of the setting or argument that names the path",
        UserError,
        words=r"embedded null (byte|character)",
    ),
    FaultKind(
        "a file is damaged",
        "restore it, or delete it to have its work done again",
        UserError,
        types=("JSONDecodeError", "UnicodeDecodeError", "YAMLError", "ArrowInvalid", "SafetensorError"),
        words=r"database disk image is malformed|file is not a database",
    ),
    FaultKind(
        "storage does not answer",
        f"see that it is mounted and reachable from every node, {AGAIN}",
        Stopped,
        codes=(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO, errno.ENODEV, errno.EHOSTDOWN),
        words=r"disk I/O error|AWS Error (NETWORK_CONNECTION|UNKNOWN|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE)"
        r"|Stale file handle|Input/output error|Generic S3 error|Generic GCS error|Transport endpoint",
        waits=True,
    ),
    FaultKind(
        "something is not there",
        f"check the path or the bucket's name, or name another place ({PLACES})",
        UserError,
        codes=(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EXDEV, errno.EINVAL),
        types=("NotFoundError",),
        words=r"path '.*' is a directory|AWS Error (NO_SUCH_BUCKET|NO_SUCH_KEY|RESOURCE_NOT_FOUND)|NoSuchBucket",
    ),
    FaultKind(
        "a node of the Ray cluster, or a process on one, is gone",
        f"see `ray status` and {PLACES.split(',')[0]}'s run.log for what ended it, {AGAIN}",
        Stopped,
        types=("RayError", "RayTaskError", "RaySystemError", "TrainingFailedError"),
        words=r"raylet|GCS\b|ActorDiedError|ActorUnavailableError|NodeDiedError|core worker|placement group",
    ),
    FaultKind(
        "a connection failed",
        f"check the network and the other side, {AGAIN}",
        Stopped,
        codes=(errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN),
        types=("ConnectionError", "TimeoutError", "ClientError", "HTTPError", "APIError"),
        words=r"Connection (refused|reset)|timed out",
    ),
    FaultKind(
        "the operating system refused something",
        f"mend its cause, {AGAIN}",
        Stopped,
        types=("OSError", "SubprocessError", "ArrowException", "BaseError", "OperationalError", "DatabaseError"),
    ),
)


def in_words(error: BaseException) -> TailorError:
    """The error for a person.

    Returns it, or what it came from, where that is one of ours; else one with the sentence of its kind. What is of no
    kind is a `Bug`.
    """
    chain = _chain(error)
    for one in chain:
        if isinstance(one, TailorError):
            return getattr(one, "cause", None) or one
    for one in reversed(chain):  # the first cause says most
        for fault in FAULTS:
            if fault.fits(one):
                return fault.kind(_sentence(fault, one_line(chain[-1] if "RayError" in fault.types else one)))
    found = chain[-1]
    return Bug(f"a fault of tailor_ray itself: {type(found).__name__}: {one_line(found)}; {KEPT}")


def fault_in_text(text: str) -> FaultKind | None:
    """The kind that a worker's printed error belongs to.

    Returns None where its cause is none that a person can mend, and trying again may help.
    """
    retried = ("memory ran out", "a GPU failed", "a connection failed")  # also what a lost node looks like
    known = (fault for fault in FAULTS if fault.what not in retried)
    return next((fault for fault in known if fault.fits_text(text) and "RayError" not in fault.types), None)


def _sentence(fault: FaultKind, said: str) -> str:
    return f"{fault.what} ({said}); {KEPT}; {fault.todo}"


def stopped_by(fault: FaultKind, said: str) -> TailorError:
    """The error that ends a run for this fault; `said` is what a library said."""
    return fault.kind(_sentence(fault, masked(said.strip())[:LONGEST]))


def one_line(error: BaseException) -> str:
    """What an error says, in one line of at most LONGEST characters, keys masked.

    Of an OSError that is its reason and its file, of Ray's the last line, without the frames before it, or the line of
    its memory monitor, below which its documentation is named.
    """
    if isinstance(error, OSError) and error.strerror and not isinstance(error, socket.gaierror):
        files = " → ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        text = f"{error.strerror}: {files}" if files else error.strerror
    elif isinstance(error, json.JSONDecodeError):
        text = f"{error.msg}, in a file that begins {error.doc[:40]!r}"
    else:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        low = next((line for line in lines if LOW_MEMORY in line), None)
        text = low or (lines[-1] if lines else type(error).__name__)
    return masked(text)[:LONGEST]


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it came from, outermost first: Ray's wrappers, groups of tasks, `raise … from`."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        inner = getattr(step, "cause", None)
        if isinstance(step, BaseExceptionGroup):
            step = step.exceptions[0]
        elif isinstance(inner, BaseException):
            step = inner
        else:
            step = step.__cause__ or (None if step.__suppress_context__ else step.__context__)
    return chain
