"""Files appear whole or not at all."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pipeline.base.files import home, replacing, write_json, write_tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for before, content in ((None, "first"), ("first", "second")):
        with replacing(path) as part:
            part.write_text(content)
            assert part.parent == path.parent  # the same disk, so that renaming is one step
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == content
        assert names(path.parent) == ["a.txt"]


def test_an_error_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"β": [1, 0.1, None, True]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "β" in text
    with suppress(KeyboardInterrupt), replacing(tmp_path / "a.json") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text
    assert names(tmp_path) == ["a.json"]


def test_a_full_disk_is_an_error_of_its_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space.*a\.txt"), replacing(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/p", "/p"),
        ("/p/.dvc/tmp/exps/standalone/tmpab12", "/p"),
        ("/p/.dvc/tmp/exps/tmpab12", "/p"),
        ("/p/dvc/tmp/exps/tmpab12", "/p/dvc/tmp/exps/tmpab12"),
    ],
)
def test_home_is_the_project_that_dvc_copied(folder: str, expected: str) -> None:
    assert home(Path(folder)) == Path(expected)


def test_the_same_tensors_make_the_same_file(tmp_path: Path) -> None:
    """The library orders metadata at random: five notes would hardly come in the same order ten times."""
    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(3)}
    notes = {name: f"β = {name}" for name in "edcba"}
    paths = [tmp_path / f"{number}.safetensors" for number in range(10)]
    for path in paths:
        write_tensors(path, tensors, notes)
    assert len({path.read_bytes() for path in paths}) == 1
    with safe_open(paths[0], framework="pt") as file:
        assert file.metadata() == notes
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
