"""The drawing commands on a small model: strips, animations, models from elsewhere, a person at a terminal."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from imports import ROOT
from PIL import Image

from pipeline import checkpoint, cli, judge, pictures
from pipeline.model import ModelParams, build, resolve
from pipeline.params import read


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and an untrained model of two latent dimensions, to work in."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    sizes = {"latent_size": 2, "encoder_hidden": [8], "decoder_hidden": [8]}
    saved = read(ROOT / "params.yaml")
    saved["model"] |= sizes
    density = {
        "weights": torch.ones(10, 1),
        "means": torch.arange(10.0)[:, None, None].expand(10, 1, 2),
        "roots": torch.eye(2).expand(10, 1, 2, 2),
    }
    model = build(resolve(ModelParams("strong", 2, (8,), (8,), None, None)), 0)
    with torch.no_grad():
        for weight in (*model.decoder.parameters(), model.pixels.weight):
            weight *= 5  # so that codes and labels show
    (tmp_path / "models").mkdir()
    checkpoint.save_model(tmp_path / "models/cvae.safetensors", model, density, saved)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["cvae", *words.split()])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        found = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            found.append(np.asarray(image.convert("L")))
        assert image.info["duration"] == 60
        return found


def cell(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    return sheet[row * 30 : row * 30 + 28, column * 30 : column * 30 + 28]


@pytest.mark.parametrize(
    ("words", "rows", "columns"),
    [
        ("interpolate 3 8", 1, 10),
        ("interpolate 3 8 --count 3 --steps 7", 3, 7),
        ("traverse 5", 2, 10),
        ("traverse 5 --dimension 1 --steps 5", 1, 5),
        ("morph", 1, 10),
        ("morph --count 4", 4, 10),
    ],
)
def test_a_strip_has_its_rows_and_steps(
    project: Path, monkeypatch: pytest.MonkeyPatch, words: str, rows: int, columns: int
) -> None:
    assert run(monkeypatch, f"{words} --out strip.png") == 0
    assert picture(project / "strip.png").shape == (rows * 30 - 2, columns * 30 - 2)


def test_the_ends_of_a_way_are_samples_of_its_digits(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "interpolate 3 8 --seed 4 --out way.png") == 0
    for digit, seed, column in ((3, 4, 0), (8, 5, 9)):
        assert run(monkeypatch, f"sample {digit} --count 1 --seed {seed} --out one.png") == 0
        difference = cell(picture(project / "way.png"), 0, column).astype(int) - picture(project / "one.png")
        assert abs(difference).max() <= 1


def test_a_traversal_of_all_holds_that_of_one_dimension(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "traverse 5 --out all.png") == 0
    assert run(monkeypatch, "traverse 5 --dimension 1 --out one.png") == 0
    assert np.array_equal(picture(project / "all.png")[30:58], picture(project / "one.png"))


def test_the_same_seed_draws_the_same_strip(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(monkeypatch, f"morph --seed {seed} --sampler prior --out {name}.png") == 0
    a, b, c = (picture(project / f"{name}.png") for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_an_animation_goes_there_and_back(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "interpolate 0 1 --steps 6 --out way.gif") == 0
    shown = frames(project / "way.gif")
    assert len(shown) == 2 * 6 - 2
    assert shown[0].shape == (28 * 4, 28 * 4)
    assert all(np.array_equal(shown[index], shown[-index]) for index in range(1, 5))
    assert run(monkeypatch, "interpolate 0 1 --steps 6 --out way.png") == 0
    last = cell(picture(project / "way.png"), 0, 5).astype(int)
    assert abs(shown[5][::4, ::4] - last).max() <= 9  # sixteen greys


def test_an_animated_morph_passes_every_digit_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "morph --steps 30 --out styles.gif") == 0
    assert run(monkeypatch, "morph --out styles.png") == 0
    shown, strip = frames(project / "styles.gif"), picture(project / "styles.png")
    assert len(shown) == 30
    for digit in range(10):
        assert abs(shown[3 * digit][::4, ::4].astype(int) - cell(strip, 0, digit)).max() <= 9


def test_a_model_file_of_another_kind_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.save(judge.build(0), project / "judge.safetensors", {})
    for words in ("sample 8", "interpolate 3 8", "traverse 5", "morph"):
        assert run(monkeypatch, f"{words} --model judge.safetensors --out x.png") == 2
        assert "holds no cvae of this project (its kind is 'judge')" in capsys.readouterr().err


def test_a_run_s_model_is_fetched_and_used(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(uri: str, root: Path) -> Path:
        assert (uri, root) == ("runs:/0123abcd", Path())
        return project / "models/cvae.safetensors"

    monkeypatch.setattr("pipeline.tracking.download_model", fetch)
    assert run(monkeypatch, "morph --model runs:/0123abcd --out run.png") == 0
    assert run(monkeypatch, "morph --out own.png") == 0
    assert np.array_equal(picture(project / "run.png"), picture(project / "own.png"))


def test_a_person_at_a_terminal_sees_digits_and_gets_no_file(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "on_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    before = sorted(project.rglob("*"))
    assert run(monkeypatch, "sample 8 --count 3") == 0
    out = capsys.readouterr().out
    assert out.count("▀") == 14 * (3 * 30 - 2)
    assert "3 samples of 8" in out
    assert sorted(project.rglob("*")) == before


def test_without_a_terminal_the_usual_file_is_written(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "traverse 5") == 0
    assert (project / "traversal.png").exists()
