"""A run's files on any pyarrow filesystem: atomic writes, committed parts, manifests, the lease.

What always holds: a file that has its final name is whole; a part exists once its sealed record does; a stage
exists once its manifest does, and the manifest is written last.
"""

from tailor_ray.storage.lease import Lease
from tailor_ray.storage.manifest import FileEntry, Manifest, commit_manifest, read_manifest, verify_files
from tailor_ray.storage.parts import Part, commit_part, committed_parts, read_part
from tailor_ray.storage.store import Store

__all__ = [
    "FileEntry",
    "Lease",
    "Manifest",
    "Part",
    "Store",
    "commit_manifest",
    "commit_part",
    "committed_parts",
    "read_manifest",
    "read_part",
    "verify_files",
]
