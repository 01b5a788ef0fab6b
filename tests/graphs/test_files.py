"""Files are written whole or not at all."""

import stat

import pytest

from crosstrace.graphs import write_atomically


def test_bytes_and_functions_are_written(tmp_path):
    path = tmp_path / "a"
    write_atomically(path, b"one")
    assert path.read_bytes() == b"one"
    write_atomically(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("problem", [RuntimeError("half way"), KeyboardInterrupt()])
def test_a_failure_leaves_neither_target_nor_part(tmp_path, problem):
    def fail(file):
        file.write(b"half")
        raise problem

    with pytest.raises(type(problem)):
        write_atomically(tmp_path / "new", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "old"
    path.write_bytes(b"old")

    def fill(file):
        file.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"cannot write .*old: No space left on device"):
        write_atomically(path, fill)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot write .*output folder .*nowhere does not exist"):
        write_atomically(tmp_path / "nowhere" / "a", b"")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        write_atomically(tmp_path / "file" / "a", b"")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        write_atomically(tmp_path, b"")


def test_permissions_are_the_umask_and_links_are_followed(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"")
    link.symlink_to(target)
    write_atomically(link, b"x")
    assert link.is_symlink()
    assert target.read_bytes() == b"x"
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
