"""Files are written whole or not at all, and only where they may be."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attlas import files
from attlas.files import NoRoom, check_out, no_room, replacing, sweep


def test_replacing_is_all_or_nothing(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("first")
        assert not path.exists()
    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary:
        temporary.write_text("sec\ud800ond", encoding="utf-8")  # opens the file, then cannot write it
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_what_counts_is_on_the_disk_first(tmp_path, monkeypatch):
    """The contents before the name, the name before anything that comes after; and not every file system can."""
    done = []

    def fsync(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        if done[-1] == str(tmp_path):
            raise OSError(errno.EINVAL, "not here")

    def rename(old, new):
        done.append((str(old), str(new)))
        os.rename(old, new)

    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", rename)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("a")
    assert done == [str(temporary), (str(temporary), str(tmp_path / "a.txt")), str(tmp_path)]
    monkeypatch.setattr(files.os, "fsync", lambda _: os.close(-1))  # EBADF stands for a disk that fails
    with pytest.raises(OSError, match="Bad file descriptor"), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("b")
    assert (tmp_path / "a.txt").read_text() == "a"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),  # PyTorch 2.13's
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors'
    ],
)
def test_a_full_disk_is_one_sentence(tmp_path, error):
    (tmp_path / "a.pth").write_text("older")

    def fail(temporary):
        temporary.write_text("half")
        raise error

    said = r"a\.pth could not be written: (No space|Disk quota|the disk took no more).* before is untouched\.$"
    with pytest.raises(NoRoom, match=said) as raised, replacing(tmp_path / "a.pth") as temporary:
        fail(temporary)
    assert raised.value.__cause__ is error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.pth", "older")]


def test_other_errors_stay_what_they_are(tmp_path):
    assert no_room(OSError(errno.EACCES, "no")) is None
    for error in (OSError(errno.ENOSPC, "full", "/dev/shm/other"), RuntimeError("other"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, replacing(tmp_path / "a.pth"):
            raise error
        assert raised.value is error


def test_a_disk_that_is_full_indeed(tmp_path):
    with pytest.raises(NoRoom, match=r"a\.txt could not be written: No space left on device\."):  # noqa: SIM117
        with replacing(tmp_path / "a.txt"):
            Path("/dev/full").write_text("a")


def test_sweep_removes_what_dead_processes_left_and_nothing_else(tmp_path):
    script = f"import os; from attlas.files import replacing\nwith replacing({str(tmp_path / 'a.b.pth')!r}) as t: "
    script += "t.touch(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    (left,) = tmp_path.iterdir()
    own = tmp_path / f".a.{os.getpid()}.unfinished"
    theirs = [".a.1.unfinished.pth", ".backup.999999999.pth", "a.999999999.unfinished.pth", ".a.unfinished.pth"]
    for name in [own.name, *theirs]:
        (tmp_path / name).touch()
    assert set(sweep(tmp_path)) == {left, own}
    assert {path.name for path in tmp_path.iterdir()} == set(theirs)


def test_check_out(tmp_path):
    path = tmp_path / "x.PNG"
    assert check_out(path, (".png", ".pdf")) == path
    path.touch()
    with pytest.raises(FileExistsError, match=r"x\.PNG exists\. To replace it: --overwrite"):
        check_out(path, (".png", ".pdf"))
    assert check_out(str(path), (".png", ".pdf"), overwrite=True) == path
    with pytest.raises(ValueError, match=r"x\.gif must end in \.png or \.pdf"):
        check_out("x.gif", (".png", ".pdf"))


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("ATTLAS_CACHE", raising=False)
    assert files.cache_folder() == Path.home() / ".cache" / "attlas"
    monkeypatch.setenv("ATTLAS_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path
