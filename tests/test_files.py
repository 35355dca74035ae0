"""The one writer (trials P15, M4): wholly or not at all, and nothing replaced that is no file."""

import os
import stat
import threading

import pytest

from maskedlinear_core import files


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_new_file_gets_the_mode_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        files.write(tmp_path / "file", b"one")
    finally:
        os.umask(before)
    assert mode(tmp_path / "file") == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o604)
    files.write(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o604)


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "file", tmp_path / "link"
    link.symlink_to(target)
    for data in (b"made", b"replaced"):  # the link dangles at first
        files.write(link, data)
        assert link.is_symlink()
        assert target.read_bytes() == data
    assert os.listdir(tmp_path / "there") == ["file"]


def test_names_beside_the_target_are_left_alone(tmp_path):
    for name in ("file.tmp", ".file.tmp", "file.part"):
        (tmp_path / name).write_bytes(b"of the user")
    files.write(tmp_path / "file", b"new")
    assert {(tmp_path / name).read_bytes() for name in ("file.tmp", ".file.tmp", "file.part")} == {b"of the user"}


def test_a_pipe_is_written_to_and_stays(tmp_path):
    path, seen = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: seen.append(path.read_bytes()))
    reader.start()
    files.write(path, b"x" * 200_000)
    reader.join()
    assert seen == [b"x" * 200_000]
    assert stat.S_ISFIFO(os.stat(path).st_mode)


def test_a_device_is_written_to_and_stays():
    files.write("/dev/null", b"one")
    with pytest.raises(OSError, match="No space left"):
        files.write("/dev/full", b"one")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
def test_nothing_is_left_behind(tmp_path, monkeypatch, broken):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fails(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*(files, "_write_all") if broken == "write" else (os, broken), fails)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_is_refused_before_any_work(tmp_path):
    for check in (files.check_target, lambda path: files.write(path, b"")):
        with pytest.raises(IsADirectoryError, match="expected the path of a file, got the folder"):
            check(tmp_path)
        with pytest.raises(FileNotFoundError, match="make the folder first"):
            check(tmp_path / "none" / "file")
    assert not os.listdir(tmp_path)


def test_the_file_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, name=name: (order.append(name), real(*args))[1])
    files.write(tmp_path / "file", b"one")
    assert order[:2] == ["fsync", "replace"]


def test_text_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"one")
    with open(tmp_path / "file", encoding="utf-8") as file, pytest.raises(TypeError, match="open it with 'rb'"):
        files.read(file)
