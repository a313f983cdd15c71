from __future__ import annotations

from pathlib import Path

import pytest

from pyseq.data.atomic_file import complete_files, replacing
from pyseq.errors import DataError


@pytest.mark.parametrize("mode, content", [("w", "nü\n"), ("wb", b"\xff")])
def test_a_file_appears_when_it_is_complete(tmp_path: Path, mode: str, content: object) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(str(path), mode) as file:
        file.write(content)
        assert path.read_text() == "old"
    assert path.read_bytes() == (content if isinstance(content, bytes) else str(content).encode())
    with pytest.raises(KeyboardInterrupt), replacing(str(path), mode) as file:
        file.write(content)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="cannot write .*nothing/file: No such file"),
        replacing(f"{tmp_path}/nothing/file"),
    ):
        pass


def test_files_appear_together(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    for failure in (True, False):
        try:
            with complete_files(str(tmp_path), "b") as folder:
                for name in "abc":
                    (Path(folder) / name).write_text("new")
                assert (tmp_path / "a").read_text() == "old" and not (tmp_path / "c").exists()
                if failure:
                    raise ValueError
        except ValueError:
            assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    assert (tmp_path / "a").read_text() == "new"
