"""The drawing commands on a small model: sheets, strips, animations, completions, a person at a terminal."""

import errno
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from commands import Cvae, assert_refused
from imports import ROOT
from PIL import Image, ImageSequence
from terminals import ESCAPE

from pipeline.base.paths import MODEL, SMALL
from pipeline.cli.complete import read_input, read_mask
from pipeline.completion import model as completion
from pipeline.completion.masks import named_masks
from pipeline.measure.judge import Judges
from pipeline.measure.judge import build as build_judge
from pipeline.model.samples import rows_of_digits, sample
from pipeline.show.pictures import Fit, screen
from pipeline.stages.saved import load_cvae, save_completer, save_judges


def picture(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.asarray(image)


def drawn(cvae: Cvae, words: str) -> np.ndarray:
    """The picture that a command draws."""
    answer = cvae(f"{words} --out drawn.png")
    assert answer.status == 0, answer.err
    return picture("drawn.png")


@pytest.mark.usefixtures("project")
def test_a_picture_has_its_rows_and_columns_and_its_seed_repeats_it(cvae: Cvae) -> None:
    for words, rows, columns in (
        ("sample 0-2 --count 4 --sampler prior", 3, 4),
        ("sample 8 --count 12", 2, 10),
        ("interpolate 3 8 --count 3 --steps 7", 3, 7),
        ("traverse 5", 2, 10),
        ("morph --count 4", 4, 10),
    ):
        sheet = drawn(cvae, f"{words} --scale 3")
        labels = (sheet.shape[0] - (rows * 30 - 2) * 3, sheet.shape[1] - (columns * 30 - 2) * 3)
        assert all(0 <= label < 40 for label in labels), words
        assert (max(labels) > 0) == (not words.startswith("sample 8"))  # samples of one digit need no labels
        if not words.startswith("traverse"):
            same, other = (drawn(cvae, f"{words} --scale 3 --seed {seed}") for seed in (0, 1))
            assert np.array_equal(sheet, same), words
            assert not np.array_equal(sheet, other), words


@pytest.mark.usefixtures("project")
def test_an_npz_holds_images_and_labels(cvae: Cvae) -> None:
    assert cvae("sample 7,1 --count 3 --out some.npz").status == 0
    with np.load("some.npz") as some:
        assert (some["images"].shape, some["images"].dtype) == ((6, 28, 28), np.float32)
        assert 0 <= some["images"].min() <= some["images"].max() <= 1
        assert some["labels"].tolist() == [7, 7, 7, 1, 1, 1]
    assert cvae("sample 3 --shown draw --out binary.npz").status == 0
    with np.load("binary.npz") as binary:
        assert set(np.unique(binary["images"])) == {0, 1}


@pytest.mark.usefixtures("project")
def test_an_animation_goes_there_and_back(cvae: Cvae) -> None:
    assert cvae("interpolate 0 1 --steps 6 --out way.gif").status == 0
    with Image.open("way.gif") as image:
        shown = [np.asarray(frame.convert("L")).astype(int) for frame in ImageSequence.Iterator(image)]
    assert len(shown) == 2 * 6 - 2
    assert all(np.array_equal(shown[index], shown[-index]) for index in range(1, 5))
    last = drawn(cvae, "interpolate 0 1 --steps 6 --scale 1")[-28:, -28:]
    assert abs(shown[5][::4, ::4] - last).max() <= 9  # sixteen greys


def test_a_fresh_clone_draws_from_the_small_model(project: Path, cvae: Cvae) -> None:
    (project / MODEL).unlink()
    (project / SMALL).parent.mkdir(parents=True)
    shutil.copy(ROOT / SMALL, SMALL)
    said = cvae("traverse 5 --out x.png").out
    assert said.startswith("models/cvae.safetensors does not exist yet: this is the small model docs/results/small")
    assert said.count("\n") == 2


def test_the_small_model_is_small_and_draws_the_asked_digits() -> None:
    assert (ROOT / SMALL).stat().st_size <= 1_000_000
    model, density, _ = load_cvae(ROOT / SMALL)
    assert {tensor.dtype for tensor in (*model.parameters(), *density)} == {torch.float32}
    digits = rows_of_digits(20)
    images = sample(model, density, digits, "fitted", seed=0).flatten(1)
    mean = torch.stack([images[digits == digit].mean(0) for digit in range(10)])
    assert (torch.cdist(images, mean).argmin(1) == digits).float().mean() > 0.6  # by the nearest mean; chance: 0.1


def test_pictures_fit_the_terminal_with_their_labels(drawer: Path, cvae: Cvae, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / SMALL, drawer / MODEL)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    before = sorted(drawer.rglob("*"))
    for words, labels, left_out in (
        ("sample 0-9 --count 12", "0 1 2 3 4 5 6 7 8 9", "1 of 12 rows are shown"),
        ("traverse 5", "-3.0 -1.7 -0.3 +1.7 +3.0 z0 z1", "2 of 16 rows and 5 of 10 in a row are shown"),
        ("sample 8 --count 30", "", "2 of 6 rows are shown"),
        ("complete bar.png --mask bottom --count 3", "seen 1 2 3", ""),
    ):
        text = ESCAPE.sub("", cvae(words).out)
        assert max(map(len, text.splitlines())) <= 80, words
        assert text.count("\n") < 24, words
        pixels, said = " ".join(text.split()).rpartition("▀")[::2]
        assert re.sub("[▀ ]+", " ", pixels).split() == labels.split()
        assert left_out in said
        assert ("a larger terminal or --out shows all" in said) == bool(left_out)
    assert sorted(drawer.rglob("*")) == before, "no file is written"
    model, density, _ = load_cvae(drawer / MODEL)
    first = sample(model, density, rows_of_digits(12), "fitted", seed=0)[::12].numpy()  # of each digit
    assert screen(first[None, :, 0], Fit(14, 5, 1), (), "0123456789", colours=True) in cvae("sample 0-9 --count 12").out


def test_a_place_that_takes_no_file_is_said_in_one_line(
    project: Path, cvae: Cvae, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "d.png").mkdir()
    for place in ("params.yaml/x.png", "d.png", "/proc/x.png", "/proc/x/y.png"):
        named = place.removeprefix("params.yaml/x.png") or "params.yaml"
        assert_refused(project, cvae, f"sample 8 --count 1 --out {place}", f"{named} can't be written")
    for number, said in ((errno.ENOSPC, "free some space"), (errno.EROFS, "make the folder writable")):
        monkeypatch.setattr("os.replace", Mock(side_effect=OSError(number, os.strerror(number))))
        for words in ("sample 0-9 --out x.png", "sample 8 --out x.npz", "morph --out x.gif"):
            assert_refused(project, cvae, words, f"({os.strerror(number)}): {said}")


INK = np.pad(np.full((20, 6), 255, np.uint8), ((4, 4), (11, 11)))  # a bar


@pytest.fixture
def drawer(project: Path) -> Path:
    """The project with a completion model, a judge, and a picture to complete."""
    model = completion.build(3, 16, 0)
    with torch.no_grad():
        model.pixels.weight *= 3
        model.decoder_latents.weight *= 3
    save_completer(project / "models/completer.safetensors", model)
    save_completer(project / "models/network.safetensors", completion.build(0, 16, 0))
    save_judges(project / "models/judge.safetensors", Judges(build_judge(0), build_judge(0)), {})
    Image.fromarray(INK).save(project / "bar.png")
    return project


def mask_file(path: Path, hidden: np.ndarray) -> None:
    Image.fromarray(np.where(hidden, 255, 0).astype(np.uint8)).save(path)


@pytest.mark.usefixtures("drawer")
def test_completions_are_ranked_read_and_drawn(cvae: Cvae) -> None:
    lines = cvae("complete bar.png --mask top --count 8 --out completions.png").out.splitlines()
    assert len(np.unique(picture("completions.png"))) > 2
    assert lines[0] == "completions.png: 8 completions, the most likely first"
    scores = [float(line.split("log p(hidden∣seen) ")[1].removesuffix(" nats")) for line in lines[1:]]
    assert len(scores) == 8
    assert scores == sorted(scores, reverse=True)
    assert all(line.split("read as ")[1][0] in "0123456789" for line in lines[1:])
    assert "as a 3" in cvae("complete bar.png --mask top --digit 3 --out as-3.png").out
    assert not np.array_equal(picture("completions.png"), picture("as-3.png"))


def test_a_runs_model_is_fetched_and_used(drawer: Path, monkeypatch: pytest.MonkeyPatch, cvae: Cvae) -> None:
    fetch = Mock(return_value=drawer / "models/completer.safetensors")
    monkeypatch.setattr("pipeline.tracking.package.download_model", fetch)
    of_run = drawn(cvae, "complete bar.png --mask top --model runs:/0123abcd")
    fetch.assert_called_once_with("runs:/0123abcd")
    assert cvae("complete bar.png --mask top").status == 0  # without a terminal, into the usual file
    assert np.array_equal(of_run, picture("completions.png"))


def test_a_mask_has_a_name_or_is_a_picture_of_any_size(tmp_path: Path) -> None:
    hidden = named_masks()["all-but-top-left"].logical_not().numpy()
    mask_file(tmp_path / "mask.png", hidden.repeat(2, 0).repeat(2, 1))
    named, by_file, other = (read_mask(str(mask), 0) for mask in ("all-but-top-left", tmp_path / "mask.png", "top"))
    assert named.equal(by_file)
    assert not named.equal(other)


LARGE = INK.repeat(5, 0).repeat(5, 1)
CLEAR = np.zeros_like(LARGE)
ON_PAPER = np.stack([200 - LARGE // 2, 190 - LARGE // 2, 180 - LARGE // 3], -1).astype(np.uint8)
SCALED, INVERTED = "140 × 140 pixels, scaled to 28 × 28", "dark ink on a light ground, inverted"


def test_a_picture_may_have_any_size_and_kind_and_what_is_done_to_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stored, name, done in (
        (Image.fromarray(INK).convert("1"), "a.png", ""),
        (Image.fromarray(INK.astype(np.uint16) * 257), "a.png", ""),
        (Image.fromarray(INK), "a.gif", "the first of its frames"),
        (Image.fromarray(255 - INK), "a.png", INVERTED),
        (Image.fromarray(LARGE), "a.jpg", SCALED),
        (Image.fromarray(LARGE[:, 25:-25]), "a.bmp", "90 × 140 pixels, padded to a square, scaled to 28 × 28"),
        (Image.fromarray(ON_PAPER), "a.jpeg", f"made grey; {SCALED}; {INVERTED}"),
        (Image.fromarray(np.stack([LARGE, LARGE], -1), "LA"), "a.png", f"put on black; {SCALED}"),
        (Image.fromarray(np.stack([CLEAR, LARGE], -1), "LA"), "a.webp", f"put on white; {SCALED}; {INVERTED}"),
    ):
        more: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(INK.T)]} if "gif" in name else {}
        stored.save(tmp_path / name, **more)
        assert np.array_equal(read_input(tmp_path / name), INK > 0), (name, done)
        assert capsys.readouterr().out == (f"{tmp_path / name}: {done}\n" if done else "")


def test_what_cannot_be_completed_is_said_in_one_line(drawer: Path, cvae: Cvae) -> None:
    Image.fromarray(INK * 0 + 9).save("empty.png")
    Image.fromarray(np.full((28, 28), np.inf, np.float32)).save("endless.tiff")
    mask_file(Path("all.png"), np.ones((28, 28), dtype=bool))
    for words, reason in (
        ("empty.png --mask top", "empty.png shows nothing: all its pixels are alike"),
        ("endless.tiff --mask top", "endless.tiff is no picture that can be read (some pixels are not finite)"),
        ("none.png --mask top", "none.png not found"),
        ("bar.png --mask tpo", "--mask tpo is no file and none of top, bottom, left, right, top-left"),
        ("bar.png --mask all.png", "--mask all.png hides everything"),
        ("bar.png --mask top --out x.gif", "must end in .png"),
        ("bar.png --mask top --model models/network.safetensors", "is the deterministic network, which has one answer"),
        ("bar.png --mask top --model none.safetensors", "run `dvc repro completion/dvc.yaml` first"),
    ):
        assert_refused(drawer, cvae, f"complete {words}", reason)
