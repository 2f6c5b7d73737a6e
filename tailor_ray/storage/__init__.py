"""A run's files on any pyarrow filesystem: atomic writes, committed parts, manifests, the lease.

Always holds. A file that has its final name is whole. A part exists once its sealed record does. A stage exists once
its manifest does, and the manifest is written last.
"""

from tailor_ray.storage.commits import (
    Manifest,
    Part,
    PartsDigest,
    commit_manifest,
    commit_part,
    committed_parts,
    drop_part,
    find_part,
    in_threads,
    read_manifest,
    read_part,
    stage_parts,
)
from tailor_ray.storage.lease import Lease
from tailor_ray.storage.store import FileEntry, Store

__all__ = [
    "FileEntry",
    "Lease",
    "Manifest",
    "Part",
    "PartsDigest",
    "Store",
    "commit_manifest",
    "commit_part",
    "committed_parts",
    "drop_part",
    "find_part",
    "in_threads",
    "read_manifest",
    "read_part",
    "stage_parts",
]
