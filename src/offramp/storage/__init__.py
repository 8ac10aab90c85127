"""Files that are whole or absent, and refuse what was damaged: every format is written with these.

atomic      a file or folder is written beside its place, flushed, then renamed
documents   JSON with a format name and a version
arrays      safetensors with a digest over the content
"""

from offramp.storage.arrays import load_arrays, save_arrays
from offramp.storage.atomic import (
    file_digest,
    read_text,
    scratch,
    storage_errors,
    whole_file,
    whole_folder,
    write_text,
)
from offramp.storage.documents import canonical, dump_document, parse_document

__all__ = [
    "canonical", "dump_document", "file_digest", "load_arrays", "parse_document", "read_text", "save_arrays",
    "scratch", "storage_errors", "whole_file", "whole_folder", "write_text",
]  # fmt: skip
