"""One process at a time works in a folder, and the others are told who it is."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from offramp.errors import StorageError
from offramp.storage import lock
from offramp.storage.lock import LOCK, folder_lock, scratch

HOLD = """
import sys, time
from pathlib import Path
from offramp.storage import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ``tmp_path / "work"``."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "work")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_the_error_names_process_host_and_time(tmp_path, holder):
    wanted = rf"work is in use by process {holder.pid} on {socket.gethostname()} since 20\d\d-\d\d-\d\d \d\d:"
    for enter in (folder_lock, scratch):
        with pytest.raises(StorageError, match=wanted + r".*; wait until that ends, or choose"):
            enter(tmp_path / "work").__enter__()


def test_it_ends_with_its_process(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "work" / LOCK).exists()
    with folder_lock(tmp_path / "work"):
        pass
    assert list((tmp_path / "work").iterdir()) == []


def test_the_same_thread_enters_again_and_another_does_not(tmp_path):
    refused = []

    def other():
        try:
            folder_lock(tmp_path).__enter__()
        except StorageError as error:
            refused.append(str(error))

    with folder_lock(tmp_path), folder_lock(tmp_path / "." / "..") as _, folder_lock(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    [message] = refused
    assert "in use by another thread of this process; wait" in message
    with folder_lock(tmp_path):
        pass


def test_a_folder_that_was_made_for_it_goes_unless_something_is_in_it(tmp_path):
    with folder_lock(tmp_path / "empty"):
        pass
    with folder_lock(tmp_path / "used"):
        (tmp_path / "used" / "x").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["used", "x"]


def test_a_forked_child_has_no_lock_and_keeps_none_alive(tmp_path):
    read, write = os.pipe()
    with folder_lock(tmp_path):
        child = os.fork()
        if child == 0:  # pragma: no cover (in the child)
            try:
                folder_lock(tmp_path).__enter__()
                os.write(write, b"entered")
            except StorageError as error:
                os.write(write, str(error).encode())
            signal.pause()
        assert f"in use by process {os.getpid()} on".encode() in os.read(read, 1000)
    with folder_lock(tmp_path):  # though the child is there still
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)


def test_a_lock_file_that_is_replaced_meanwhile_is_tried_again(tmp_path, monkeypatch):
    found = []

    def first_time_elsewhere(path, descriptor):
        found.append(descriptor)
        if len(found) == 1:
            path.unlink()
            return False
        return True

    monkeypatch.setattr(lock, "_is_at", first_time_elsewhere)
    with folder_lock(tmp_path):
        assert len(found) == 2


def test_the_folder_may_be_removed_while_it_is_locked(tmp_path):
    import shutil

    with folder_lock(tmp_path / "work"):
        shutil.rmtree(tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff", b"[" * 4000])
def test_whoever_has_not_signed_is_another_process(tmp_path, content):
    path = tmp_path / "lock"
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDONLY)
    assert lock._holder(descriptor) == "another process"
    os.close(descriptor)


def test_where_there_are_no_locks_everybody_is_let_in(tmp_path, monkeypatch):
    def none_here(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none_here)
    with folder_lock(tmp_path):
        pass


def test_a_place_where_no_lock_can_be_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a file is where a folder is expected"):
        folder_lock(tmp_path / "file" / "below").__enter__()
    (tmp_path / LOCK).mkdir()
    with pytest.raises(StorageError, match="a file is where a folder is expected, or the reverse"):
        folder_lock(tmp_path).__enter__()
    assert Path(tmp_path / LOCK).is_dir()
