"""Files that are whole or absent, and refuse what was damaged: every format is written with these.

atomic      a file or folder is written beside its place, flushed, then renamed
documents   JSON with a format name and a version
arrays      safetensors with a digest over the content
"""

from offramp.storage.arrays import load_arrays, save_arrays
from offramp.storage.atomic import (
    atomic_folder,
    atomic_write,
    file_digest,
    read_text,
    scratch,
    storage_errors,
    write_text,
)
from offramp.storage.documents import canonical, dump_document, parse_document

__all__ = [
    "atomic_folder", "atomic_write", "canonical", "dump_document", "file_digest", "load_arrays",
    "parse_document", "read_text", "save_arrays", "scratch", "storage_errors", "write_text",
]  # fmt: skip
