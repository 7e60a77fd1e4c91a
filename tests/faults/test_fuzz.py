"""Any arguments, pictures, masks and model files: what is asked for, or one line. Never a traceback."""

import contextlib
import io
import json
import shutil
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import drills
import numpy as np
import pytest
import typer.main
from drills import WHOLE
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.base.errors import UserError
from pipeline.cli import main as cli
from pipeline.cli.complete import read_input, read_mask
from pipeline.show.reading import read_grey
from pipeline.stages import saved

OLD = Path(__file__).with_name("old")
quickly = settings(drills.quickly, max_examples=300 if WHOLE else 60)
command: Any = typer.main.get_command(cli.app)

WORDS = st.text(st.characters(exclude_characters="\0/~"), min_size=1, max_size=8) | st.sampled_from(
    ["\udcff", "0", "-1", "9" * 400, "1e999", "nan", "a=b", "train.epochs=", "[" * 2000, "a/../b", "\x1b[2J", "{}", "*"]
)


@st.composite
def arguments(draw: st.DrawFn, name: str) -> list[str]:
    """Options of a command with any values, and any words."""
    options = [option for one in command.commands[name].params for option in one.opts if option.startswith("-")]
    option = st.sampled_from([*options, "--none"])
    pairs = draw(st.lists(st.tuples(option, WORDS), max_size=2))
    return [*draw(st.lists(WORDS, min_size=not pairs, max_size=2)), *(word for pair in pairs for word in pair)]


@pytest.fixture
def folder(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a model and without data, in which we are."""
    shutil.copy(database, tmp_path / "mlflow.db")
    shutil.copy(Path(cli.__file__).parents[2] / "params.yaml", tmp_path)
    (tmp_path / "models").mkdir()
    shutil.copy(OLD / "cvae.safetensors", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", sorted(command.commands))
def test_any_arguments_are_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @settings(quickly, max_examples=50 if WHOLE else 5)
    @given(arguments(name))
    def check(words: list[str]) -> None:
        out, said = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
        monkeypatch.setattr(sys, "argv", ["cvae", name, *words])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
            cli.main()
        said.flush()
        text = said.buffer.getvalue().decode()
        assert end.value.code in (0, 2)
        assert "Traceback" not in text
        if end.value.code and not (name == "doctor" and "--services" in words):  # whose findings are on stdout
            assert text.splitlines()[-1].startswith("error: ")

    check()


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")


def picture(mode: str, side: int = 9) -> bytes:
    """A TIFF file, which can have any mode; PNG for those that it can't have."""
    values = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    image = Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(values).convert(mode)
    content = io.BytesIO()
    image.save(content, "PNG" if mode == "LA" else "TIFF")
    return content.getvalue()


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_is_read(mode: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(picture(mode))
    assert read_grey(tmp_path / "one").grey.shape == (28, 28)


@quickly
@given(st.sampled_from(MODES), st.integers(0, 400), st.binary(min_size=1, max_size=4), st.integers(0, 600))
def test_a_damaged_picture_or_mask_is_read_or_refused(
    tmp_path: Path, mode: str, place: int, put: bytes, end: int
) -> None:
    content = bytearray(picture(mode))
    content[place : place + len(put)] = put
    (tmp_path / "one").write_bytes(content[:end] if end < 300 else content)
    for read in (read_input, lambda path: read_mask(str(path), 0)):
        with contextlib.suppress(UserError):
            assert read(tmp_path / "one").shape == (28, 28)


@pytest.mark.parametrize("mode", ["1", "RGB", "I;16"])
def test_a_picture_that_would_fill_the_memory_is_refused(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (1, 1)).save(tmp_path / "one.png")
    content = bytearray((tmp_path / "one.png").read_bytes())
    content[16:24] = (100_000).to_bytes(4, "big") * 2  # width and height
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "one.png").write_bytes(content)
    with pytest.raises(UserError, match="decompression bomb"):
        read_grey(tmp_path / "one.png")


def test_a_large_picture_of_16_bits_takes_little_memory(tmp_path: Path) -> None:
    Image.new("I;16", (4_000, 4_000), 40_000).save(tmp_path / "one.png")
    tracemalloc.start()
    try:
        assert read_grey(tmp_path / "one.png").grey.mean() == pytest.approx(40_000 / 65_535, abs=0.01)
        assert tracemalloc.get_traced_memory()[1] < 60e6  # whatever the size; as float64 it would be 128 MB
    finally:
        tracemalloc.stop()


HEADERS: dict[str, Any] = {
    "a huge header": (2**63).to_bytes(8, "little") + b"{}",
    "a header beyond the file": (10**6).to_bytes(8, "little") + b"{}",
    "no header": b"",
    "negative offsets": {"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
    "offsets that turn back": {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    "offsets beyond the file": {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
    "a shape that overflows": {"w": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
    "an unknown type": {"w": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}},
    "offsets that overlap": {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"},
    "metadata of numbers": {"__metadata__": {"kind": 3}},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_model_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    header = HEADERS[name]
    if isinstance(header, dict):
        text = json.dumps({"__metadata__": {"kind": "cvae", "params": "{}"}} | header).encode()
        header = len(text).to_bytes(8, "little") + text + bytes(4)
    (tmp_path / "m.safetensors").write_bytes(header)
    for load in (saved.load_cvae, saved.load_curve, saved.load_completer, saved.load_judges):
        with pytest.raises(UserError, match=r"m\.safetensors") as caught:
            load(tmp_path / "m.safetensors")
        assert "\n" not in str(caught.value)
