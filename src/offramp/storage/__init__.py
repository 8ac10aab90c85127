"""Files that are whole or absent, and refuse what was damaged: every format is written with these.

atomic      a file or folder is written beside its place, flushed, then renamed
documents   JSON with a format name and a version
arrays      safetensors with a digest over the content
folder      a folder whose manifest lists the SHA-256 of every file
lock        one process at a time in a folder
system      locks of open files, two paths exchanged in one step
"""

from offramp.storage.arrays import load_arrays, parse_arrays, save_arrays
from offramp.storage.atomic import (
    atomic_folder,
    atomic_write,
    is_file,
    read_text,
    storage_errors,
    write_text,
)
from offramp.storage.documents import dump_document, parse_document
from offramp.storage.folder import (
    FolderFormat,
    check_replaceable,
    content,
    document_digest,
    read_as,
    text_content,
)
from offramp.storage.lock import folder_lock, scratch

__all__ = [
    "FolderFormat", "atomic_folder", "atomic_write", "check_replaceable", "content", "document_digest",
    "dump_document", "folder_lock", "is_file", "load_arrays", "parse_arrays", "parse_document", "read_as",
    "read_text", "save_arrays", "scratch", "storage_errors", "text_content", "write_text",
]  # fmt: skip
