"""Files appear whole or not at all."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pipeline.base.files import home, replacing, sha256, write_json, write_tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_takes_the_name_and_leaves_nothing_else(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as part:
        part.write_text("new")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as part:
        part.write_text("half of the n")
        assert path.read_text() == "old"
        part.write_text("new")
    assert path.read_text() == "new"


def write_half(path: Path, error: type[BaseException]) -> None:
    with replacing(path) as part:
        part.write_text("half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_keeps_the_old_file_and_leaves_nothing_behind(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error):
        write_half(path, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_before_the_first_byte_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt"):
        raise RuntimeError
    assert names(tmp_path) == []


def test_the_part_is_on_the_same_disk_and_not_under_the_name(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as part:
        assert part.parent == tmp_path
        assert part.name != "a.txt"
        part.touch()


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "b" / "c" / "a.json", {})
    assert names(tmp_path / "b" / "c") == ["a.json"]


def test_json_comes_back_as_it_was_and_ends_its_last_line(tmp_path: Path) -> None:
    content = {"β": [1, 0.1, None, True], "nested": {"a": "b"}}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert text.endswith("}\n")
    assert "β" in text


def test_what_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert json.loads((tmp_path / "a.json").read_text()) == 1
    assert names(tmp_path) == ["a.json"]


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


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
    """The library's own order of metadata is another each time: of five notes, hardly ever the same one ten times."""
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
