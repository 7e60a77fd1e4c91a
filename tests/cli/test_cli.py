"""The command line as people meet it: answers, files, and errors in one line with exit status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cost import processor_seconds
from imports import ROOT
from PIL import Image
from ruamel.yaml import YAML
from settings import model_params

from pipeline.base.params import read
from pipeline.cli import main as cli
from pipeline.model.cvae import build, resolve
from pipeline.model.density import Density
from pipeline.stages.saved import save_cvae


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of `cvae WORDS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["cvae", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """What an .npz file holds."""
    with np.load(path) as file:
        return dict(file)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and an untrained model, to work in."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    params = model_params(latent_size=2, encoder_hidden=(8,), decoder_hidden=(8,))
    saved = read(ROOT / "params.yaml")
    saved["model"] |= {"latent_size": 2, "encoder_hidden": [8], "decoder_hidden": [8]}
    density = {
        "weights": torch.ones(10, 1),
        "means": torch.zeros(10, 1, 2),
        "roots": torch.eye(2).expand(10, 1, 2, 2),
    }
    (tmp_path / "models").mkdir()
    save_cvae(tmp_path / "models/cvae.safetensors", build(resolve(params), 0), Density(**density), saved)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_draws_of_pixels_are_black_and_white_under_a_bernoulli(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "sample", "3", "--shown", "draw", "--out", "drawn.npz") == 0
    assert set(np.unique(arrays(project / "drawn.npz")["images"])) == {0, 1}
    assert run(monkeypatch, "sample", "3", "--out", "means.npz") == 0
    assert len(np.unique(arrays(project / "means.npz")["images"])) > 2


def test_a_png_has_a_row_for_each_digit(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "sample", "0-2", "--count", "4", "--out", "few.png") == 0
    with Image.open(project / "few.png") as image:
        assert image.size == (4 * 30 - 2, 3 * 30 - 2)
        assert image.mode == "L"


def test_one_digit_fills_rows_of_ten(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "sample", "8", "--count", "12", "--out", "eights.png") == 0
    with Image.open(project / "eights.png") as image:
        assert image.size == (10 * 30 - 2, 2 * 30 - 2)


def test_an_npz_holds_images_and_labels(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "sample", "7,1", "--count", "3", "--seed", "5", "--out", "some.npz") == 0
    some = arrays(project / "some.npz")
    assert some["images"].shape == (6, 28, 28)
    assert some["images"].dtype == np.float32
    assert 0 <= some["images"].min() <= some["images"].max() <= 1
    assert some["labels"].tolist() == [7, 7, 7, 1, 1, 1]


@pytest.mark.parametrize("sampler", ["prior", "fitted"])
def test_a_seed_repeats_its_samples(project: Path, monkeypatch: pytest.MonkeyPatch, sampler: str) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        words = ("sample", "3", "--count", "2", "--seed", seed, "--sampler", sampler, "--out", f"{name}.npz")
        assert run(monkeypatch, *words) == 0
    a, b, c = (arrays(project / f"{name}.npz")["images"] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("sample", "10"), "'10' names no digits"),
        (("sample", "9-0"), "names no digits"),
        (("sample", "eight"), "names no digits"),
        (("sample", "8", "--count", "0"), "--count must be from 1"),
        (("sample", "8", "--count", "1000000000"), "--count must be from 1"),
        (("sample", "8", "--seed", "-1"), "--seed must be"),
        (("sample", "8", "--out", "eight.bmp"), "must end in .png or .npz"),
        (("sample", "8", "--out", "nowhere/eight.png"), "there is no folder nowhere"),
        (("sample", "8", "--model", "absent.safetensors"), "absent.safetensors not found: train a model first"),
        (("sample", "8", "--model", "params.yaml"), "params.yaml is no safetensors file"),
        (("sample", "8", "--sampler", "priro"), "invalid choice: 'priro'"),
        (("sample", "8", "--model", "runs:/nonsense"), "'runs:/nonsense' names no run"),
        (("sample", "8", "--model", "runs:/0123abcd"), "there is no run 0123abcd in MLflow"),
        (("sample", "8", "--model", "models"), "models is no safetensors file"),
        (("interpolate", "3", "10"), "'10' is no digit"),
        (("interpolate", "three", "8"), "'three' is no digit"),
        (("interpolate", "3", "8", "--count", "0"), "--count must be from 1"),
        (("interpolate", "3", "8", "--steps", "1"), "--steps must be from 2 to 1,000, not 1"),
        (("interpolate", "3", "8", "--out", "way.npz"), "must end in .png or .gif"),
        (("interpolate", "3"), "required: TO"),
        (("traverse", "-5"), "error:"),
        (("traverse", "5", "--dimension", "2"), "--dimension must be from 0 to 1 for this model, not 2"),
        (("traverse", "5", "--dimension", "-1"), "--dimension must be from 0 to 1 for this model, not -1"),
        (("traverse", "5", "--steps", "1000000000"), "--steps must be from 2 to 1,000"),
        (("morph", "--count", "1000000000"), "--count must be from 1 to 10,000"),
        (("morph", "--steps", "5"), "--steps is for a .gif"),
        (("morph", "--out", "models"), "must end in .png or .gif"),
        (("sampel", "8"), "did you mean 'sample'?"),
        (("weight", "--article", "-1"), "must be a finite number"),
        (("weight", "--article", "nan"), "must be a finite number"),
        (("weight", "--beta", "1", "--batch-size", "0"), "--batch-size must be at least 1"),
        (("weight",), "one of the arguments --article --beta is required"),
        (("report",), "run `dvc repro` first"),
        (("evaluate",), "models/run.json not found: train a model first"),
        (("train",), "run `dvc repro prepare` first"),
        (("judge",), "run `dvc repro prepare` first"),
        (("prepare",), "run `cvae download` first"),
        ((), "required: COMMAND"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    before = sorted(project.rglob("*"))
    assert run(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(project.rglob("*")) == before


def test_a_misspelt_key_names_its_place(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (project / "params.yaml").read_text(encoding="utf-8").replace("sampler: fitted", "sampler: fited")
    (project / "params.yaml").write_text(text, encoding="utf-8")
    assert run(monkeypatch, "sample", "8") == 2
    expected = "error: params.yaml: sample.sampler must be 'prior' or 'fitted', not 'fited'; did you mean 'fitted'?\n"
    assert capsys.readouterr().err == expected


def test_the_articles_weight_is_the_evidence_lower_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "weight", "--article", "1e-5", "--batch-size", "128") == 0
    assert "β = 1.00 " in capsys.readouterr().out
    assert run(monkeypatch, "weight", "--beta", "100352", "--batch-size", "128") == 0
    assert "w = 1 " in capsys.readouterr().out


def test_the_report_of_the_repository_reads_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reports").mkdir()
    committed = json.loads((ROOT / "docs/results/default/metrics.json").read_text(encoding="utf-8"))
    (tmp_path / "reports/metrics.json").write_text(json.dumps(committed | {"collapsed": True}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "report") == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("prior", "fitted", "real", "frechet", "nll", "COLLAPSED", "make ui"))
    assert f"{committed['fitted']['class_accuracy']:.4g}" in out


def test_help_costs_little_more_than_python_itself() -> None:
    """Both in turn, and the cheapest of five each, so that a slow or busy machine slows both.

    That nothing heavy is imported is held by test_rooms; `python -m benchmarks.commands --quick` times the help.
    """

    def start(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=ROOT)

    plain, helped = [], []
    for _ in range(5):
        plain.append(processor_seconds(lambda: start("-c", "import argparse, difflib, importlib, json, pathlib")))
        helped.append(processor_seconds(lambda: start("-m", "pipeline.cli.main", "--help")))
    assert min(helped) < 2.5 * min(plain)  # measured 1.2; with numpy it would be 3.4


def test_every_command_has_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        *cli.STAGES,
        "sample",
        "interpolate",
        "traverse",
        "morph",
        "complete",
        "weight",
        "report",
        "doctor",
        "reproduce",
        "ui",
    ):
        assert run(monkeypatch, command, "--help") == 0
        assert f"usage: cvae {command}" in capsys.readouterr().out


def test_a_reader_that_leaves_is_no_error() -> None:
    program = [sys.executable, "-m", "pipeline.cli.main", "--help"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=os.environ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_params_yaml_is_read_alike_by_old_and_new_yaml() -> None:
    """DVC and editors may read YAML 1.1, where 1e-5 is a text; our numbers are numbers in both."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    old = YAML(typ="safe", pure=True)
    old.version = (1, 1)
    assert old.load(text) == YAML(typ="safe", pure=True).load(text)
