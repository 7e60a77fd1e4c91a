"""The drawing commands on a small model: strips, animations, models from elsewhere, a person at a terminal."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from imports import ROOT
from PIL import Image
from settings import model_params

from pipeline.base.params import read
from pipeline.cli import main as cli
from pipeline.completion import model as completion
from pipeline.measure import judge
from pipeline.model.cvae import build, resolve
from pipeline.model.density import Density
from pipeline.show import pictures
from pipeline.stages.saved import save_completer, save_cvae, save_judge


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
    model = build(resolve(model_params(latent_size=2, encoder_hidden=(8,), decoder_hidden=(8,))), 0)
    with torch.no_grad():
        for weight in (*model.decoder.parameters(), model.pixels.weight):
            weight *= 5  # so that codes and labels show
    (tmp_path / "models").mkdir()
    save_cvae(tmp_path / "models/cvae.safetensors", model, Density(**density), saved)
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
    save_judge(project / "judge.safetensors", judge.build(0), {})
    for words in ("sample 8", "interpolate 3 8", "traverse 5", "morph"):
        assert run(monkeypatch, f"{words} --model judge.safetensors --out x.png") == 2
        assert "holds no cvae of this project (its kind is 'judge')" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "most"),
    [
        ("interpolate 3 8", "10,000"),
        ("interpolate 3 8 --steps 1000", "100"),
        ("morph", "10,000"),
        ("morph --steps 500 --out m.gif", "200"),
        ("sample 0-9", "10,000"),
    ],
)
def test_a_count_may_not_make_more_pictures_than_memory_holds(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, most: str
) -> None:
    for count in (0, 20_000, 10**9):
        assert run(monkeypatch, f"{words} --count {count}") == 2
        assert capsys.readouterr().err == f"error: --count must be from 1 to {most}, not {count:,}\n"
    assert sorted(path.name for path in project.iterdir()) == ["models", "params.yaml"]


def test_a_run_s_model_is_fetched_and_used(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(uri: str, root: Path) -> Path:
        assert (uri, root) == ("runs:/0123abcd", Path())
        return project / "models/cvae.safetensors"

    monkeypatch.setattr("pipeline.tracking.package.download_model", fetch)
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


# Completions


INK = np.pad(np.full((20, 6), 255, np.uint8), ((4, 4), (11, 11)))  # a bar


@pytest.fixture
def drawer(project: Path) -> Path:
    """The project with a completer, a judge, and a picture to complete."""
    model = completion.build(3, 16, 0)
    with torch.no_grad():
        model.pixels.weight *= 3
        model.decoder_code.weight *= 3
    save_completer(project / "models/completer.safetensors", model)
    save_completer(project / "models/network.safetensors", completion.build(0, 16, 0))
    save_judge(project / "models/judge.safetensors", judge.build(0), {})
    Image.fromarray(INK).save(project / "bar.png")
    return project


def mask_file(path: Path, hidden: np.ndarray) -> None:
    Image.fromarray(np.where(hidden, 255, 0).astype(np.uint8)).save(path)


def test_completions_are_ranked_read_and_drawn(
    drawer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "complete bar.png --mask top --count 8 --out completions.png") == 0
    assert picture(drawer / "completions.png").shape == (84 + 14, 9 * (84 + 6) - 6)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "completions.png: 8 completions, the likeliest first"
    scores = [float(line.split("log p(hidden∣seen) ")[1].removesuffix(" nats")) for line in lines[1:]]
    assert len(scores) == 8
    assert scores == sorted(scores, reverse=True)
    assert all(line.split("read as ")[1][0] in "0123456789" for line in lines[1:])


def test_completions_are_drawn_on_a_terminal_too(
    drawer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    before = sorted(drawer.rglob("*"))
    assert run(monkeypatch, "complete bar.png --mask bottom --count 3") == 0
    drawn, said = capsys.readouterr().out.split("3 completions, the likeliest first\n")
    assert len(drawn.splitlines()) == 15  # four pictures of half size, three to a line, a gap between the lines
    assert "@" in drawn
    assert said.count("read as") == 3
    assert sorted(drawer.rglob("*")) == before


def test_more_completions_than_fit_in_a_row_take_another(drawer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "complete bar.png --mask left --count 9") == 0
    assert picture(drawer / "completions.png").shape == (2 * (84 + 14) + 6, 9 * (84 + 6) - 6)


def test_a_mask_s_name_and_its_picture_say_the_same(drawer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = ~completion.named_masks()["all-but-top-left"].numpy()
    mask_file(drawer / "mask.png", hidden)
    for name, mask in (("a", "all-but-top-left"), ("b", "mask.png"), ("c", "top-left")):
        assert run(monkeypatch, f"complete bar.png --mask {mask} --out {name}.png") == 0
    a, b, c = (picture(drawer / f"{name}.png") for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_block_lies_where_the_seed_has_it(drawer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(monkeypatch, f"complete bar.png --mask block --count 1 --seed {seed} --out {name}.png") == 0
    a, b, c = (picture(drawer / f"{name}.png")[:84, :84] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_run_s_completer_is_fetched_and_used(drawer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(uri: str, root: Path) -> Path:
        assert (uri, root) == ("runs:/0123abcd", Path())
        return drawer / "models/completer.safetensors"

    monkeypatch.setattr("pipeline.tracking.package.download_model", fetch)
    assert run(monkeypatch, "complete bar.png --mask top --model runs:/0123abcd --out run.png") == 0
    assert run(monkeypatch, "complete bar.png --mask top --out own.png") == 0
    assert np.array_equal(picture(drawer / "run.png"), picture(drawer / "own.png"))


def test_a_digit_is_insisted_on(
    drawer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "complete bar.png --mask top --out a.png") == 0
    assert run(monkeypatch, "complete bar.png --mask top --digit 3 --out b.png") == 0
    assert "a 3 insisted on" in capsys.readouterr().out
    assert not np.array_equal(picture(drawer / "a.png"), picture(drawer / "b.png"))


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (lambda ink: Image.fromarray(ink), ""),
        (lambda ink: Image.fromarray(ink).convert("1"), ""),
        (lambda ink: Image.fromarray(255 - ink), "dark ink on a light ground, inverted"),
        (lambda ink: Image.fromarray(ink).convert("RGB"), "stored in colour, read as grey"),
        (lambda ink: Image.fromarray(ink).convert("P"), "stored in colour, read as grey"),
        (lambda ink: Image.fromarray(ink).convert("LA"), "opaque, alpha ignored"),
        (lambda ink: Image.fromarray(ink).convert("RGBA"), "opaque, alpha ignored; stored in colour, read as grey"),
        (lambda ink: Image.fromarray(ink.astype(np.uint16) * 257), "16 bits a pixel, scaled to 8"),
    ],
)
def test_a_picture_may_be_stored_in_other_ways_and_what_is_done_is_said(
    drawer: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stored: Callable[[np.ndarray], Image.Image],
    said: str,
) -> None:
    assert run(monkeypatch, "complete bar.png --mask top --out usual.png") == 0
    capsys.readouterr()
    stored(INK).save(drawer / "other.png")
    assert run(monkeypatch, "complete other.png --mask top --out other-out.png") == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (f"other.png: {said}" if said else "other-out.png: 8 completions, the likeliest first")
    assert np.array_equal(picture(drawer / "usual.png"), picture(drawer / "other-out.png"))


COLOURED = np.stack([INK, INK // 2, 0 * INK], -1)
BAD: list[tuple[str, str]] = [
    ("wide.png --mask top", "wide.png is 56 × 28 pixels, not 28 × 28: crop and scale it first"),
    ("coloured.png --mask top", "coloured.png is coloured: make it grey first"),
    ("clear.png --mask top", "clear.png is transparent in places"),
    ("float.tiff --mask top", "float.tiff holds floating-point values"),
    ("moving.gif --mask top", "moving.gif holds 2 frames: give one picture"),
    ("params.yaml --mask top", "params.yaml is no picture that can be read"),
    ("cut.png --mask top", "cut.png is no picture that can be read"),
    ("models --mask top", "models is no picture that can be read"),
    ("none.png --mask top", "none.png not found"),
    ("bar.png", "required: --mask"),
    ("bar.png --mask tpo", "--mask tpo is no file and none of top, bottom, left, right, top-left"),
    ("bar.png --mask all.png", "--mask all.png hides everything"),
    ("bar.png --mask nothing.png", "--mask nothing.png hides nothing"),
    ("bar.png --mask wide.png", "wide.png is 56 × 28 pixels"),
    ("bar.png --mask none.png", "--mask none.png is no file"),
    ("bar.png --mask top --digit 10", "'10' is no digit"),
    ("bar.png --mask top --count 0", "--count must be from 1 to 1,000, not 0"),
    ("bar.png --mask top --count 1000000000", "--count must be from 1 to 1,000, not 1,000,000,000"),
    ("bar.png --mask top --seed -1", "--seed must be"),
    ("bar.png --mask top --out x.gif", "must end in .png"),
    ("bar.png --mask top --out nowhere/x.png", "there is no folder nowhere"),
    ("bar.png --mask top --model models/cvae.safetensors", "holds no completion of this project"),
    ("bar.png --mask top --model models/network.safetensors", "is the deterministic network, which has one answer"),
    ("bar.png --mask top --model none.safetensors", "run `dvc repro completion/dvc.yaml` first"),
    ("bar.png --mask top --judge none.safetensors", "run `dvc repro judge`"),
]


@pytest.mark.parametrize(("words", "reason"), BAD)
def test_what_can_t_be_completed_is_said_in_one_line(
    drawer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, reason: str
) -> None:
    Image.fromarray(np.hstack([INK, INK])).save(drawer / "wide.png")
    Image.fromarray(COLOURED).save(drawer / "coloured.png")
    Image.fromarray(np.stack([INK, INK], -1), "LA").save(drawer / "clear.png")
    Image.fromarray(INK.astype(np.float32)).save(drawer / "float.tiff")
    Image.fromarray(INK).save(drawer / "moving.gif", save_all=True, append_images=[Image.fromarray(INK.T)])
    (drawer / "cut.png").write_bytes((drawer / "bar.png").read_bytes()[:60])
    mask_file(drawer / "all.png", np.ones((28, 28), dtype=bool))
    mask_file(drawer / "nothing.png", np.zeros((28, 28), dtype=bool))
    before = sorted(drawer.rglob("*"))
    assert run(monkeypatch, f"complete {words}") == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(drawer.rglob("*")) == before
