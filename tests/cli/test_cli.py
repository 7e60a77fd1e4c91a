"""The command line: help, reports, a fresh clone, and errors in one line with exit status 2."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from commands import Cvae, assert_refused, one_line
from imports import ROOT

from pipeline.base.files import write_json
from pipeline.base.params import write
from pipeline.base.paths import JUDGE, METRICS, PREPARED, PUBLISHED, SPECTRUM
from pipeline.cli.main import COMMANDS, STAGES


def test_what_is_wrong_is_said_in_one_line(project: Path, cvae: Cvae) -> None:
    for words, reason in (
        ("sample 10", "'10' names no digits"),
        ("sample 8 --out eight.bmp", "must end in .png or .npz"),
        ("sample 8 --model params.yaml", "params.yaml holds no cvae of this version"),
        ("sample 8 --model runs:/nonsense", "'runs:/nonsense' names no run"),
        ("sample 8 --model runs:/0123abcd", "there is no run 0123abcd in MLflow"),
        ("traverse 5 --dimension 2", "--dimension must be from 0 to 1 for this model, not 2"),
        ("sampel 8", "Did you mean 'sample'?"),
        ("weight --article nan", "must be a finite number"),
        ("weight", "give one of --weight, --like, --article and --beta"),
        ("weight --like nobody", "--like nobody is not known: give one of article, article-sum, pytorch"),
        ("reproduce article", "data/prepared/mnist.safetensors not found: run `dvc repro prepare` first"),
        ("try objective.kl_weight=-1", "objective.kl_weight must be greater than or equal to 0, not -1"),
        ("report", "run `dvc repro evaluate` first"),
        ("evaluate", "not found: train a model first"),
    ):
        assert_refused(project, cvae, words, reason)


GARBAGE = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "half a file": b'{"protocol": {"im',
    "brackets": b"[" * 100_000,
    "no text": b"\xff\xfe\x00",
    "no figures": b'{"protocol": {"images": "many"}, "prior": null}',
    "other types": b'{"protocol": [], "prior": 3, "collapsed": "no"}',
}


@pytest.mark.parametrize("content", GARBAGE)
def test_files_of_something_else_are_refused_with_the_remedy_or_done_without(
    reported: Path, cvae: Cvae, content: str
) -> None:
    (reported / "models/run.json").write_bytes(GARBAGE[content])
    (reported / "reports/history.csv").write_bytes(GARBAGE[content])
    assert cvae("doctor").status == 0
    (reported / "models/run.json").write_text('{"run_id": "", "tracking_uri": ""}', encoding="utf-8")
    for name in ("validation.json", "metrics.json", "study/best.json", "study/trials.csv"):
        (reported / "reports" / name).write_bytes(GARBAGE[content])
    for words, name in (("", "validation"), ("--html a.html", "validation"), ("--html a.html study", "study")):
        assert_refused(reported, cvae, f"report {words}", name)
        assert "run `dvc repro" in cvae(f"report {words}").err


def test_a_value_that_no_machine_can_use_is_refused(project: Path, cvae: Cvae) -> None:
    write({("train", "device"): "meta"}, project / "params.yaml")
    assert_refused(project, cvae, "doctor", "train.device 'meta' can't be used")
    write({("train", "epochs"): 10**400}, project / "params.yaml")
    assert_refused(project, cvae, "params", "train.epochs is beyond")


def test_a_pipe_is_not_waited_for(project: Path, cvae: Cvae) -> None:
    os.mkfifo(project / "picture.png")
    assert_refused(project, cvae, "complete picture.png --mask top", "picture.png")


def test_any_loss_is_converted_and_back_and_a_squared_error_has_a_sigma(cvae: Cvae) -> None:
    own = "--weight 0.2 --reconstruction mse --over-pixels mean --over-batch mean --kl-over-latents mean --factor 0.5"
    for words, *told in (
        ("--article 1e-5 --batch-size 128", "β = 1.00 "),
        ("--beta 100352 --batch-size 128", "w = 1 "),
        ("--like article", "mean BCE, KL summed 1.00 mean BCE, KL averaged 0.00784", "KL summed 1.00 0.708 50.18"),
        ("--like pytorch-vae", "β = 3.07 with σ = 0.707", "β = 1 with σ = 1.24", "w · 12288 = 3.07 for w = 0.00025"),
        ("--like pytorch-vae --beta 3.072", "w = 0.00025 "),
        (f"{own} --pixels 100 --latents 4 --batch-size 8", "β = w · 0.5 · 100 ÷ 4 · 8 = 20.00 for w = 0.20"),
        ("--weight 0.3", "both terms are reduced alike, so β = w = 0.30"),
        ("--like list", "latent-diffusion"),
    ):
        out = one_line(cvae(f"weight {words}").out)
        assert [word for word in told if word not in out] == []


def test_a_weight_is_told_what_the_spectrum_expects_where_it_is_known(project: Path, cvae: Cvae) -> None:
    def said(words: str) -> str:
        return one_line(cvae(f"weight {words}").out)

    assert "spectrum" not in said("--like keras")
    rows = [{"kl_weight": 0.25, "kl": 30.0, "active_units": 16}, {"kl_weight": 4.0, "kl": 10.0, "active_units": 8}]
    about = {"likelihood": "bernoulli", "pixels": "grey", "latent_size": 16, "collapse": 40.0}
    write_json(project / SPECTRUM, about | {"expected": rows})
    assert "(grey pixels, 16 latents) expects a kl of 20.0 nats, and 12 latents in use." in said("--like keras")
    assert "expects a collapse: no latent pays for itself above β = 40.00" in said("--weight 41")
    for other in ("--weight 0.01", "--weight 1 --pixels 100", "--weight 1 --reconstruction mse"):
        assert "spectrum" not in said(other)
    (project / SPECTRUM).write_text("{", encoding="utf-8")
    assert_refused(project, cvae, "weight --like keras", "spectrum.json can't be read")


@pytest.mark.usefixtures("reported")
def test_the_report_shows_the_headline_figures(cvae: Cvae) -> None:
    out = cvae("report").out
    shown = ("prior", "fitted", "real", "0.988 ±0.012", "99.37", "5,000 validation", "prior_hole", "0.25", "4.551")
    words = (*shown, "2.36 ±0.12", "3 sample sets", "COLLAPSED", "400 ÷ 500")
    assert [word for word in words if word not in one_line(out)] == []
    assert out.index("10,000 test") > max(map(out.index, shown)), "test comes last"
    assert out.count("test") == 2
    METRICS.write_text("{", encoding="utf-8")
    assert "reports/metrics.json can't be read" in cvae("report").err


def test_cvae_alone_shows_help_and_every_command_has_its_own(cvae: Cvae, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    alone = cvae("")
    assert alone == cvae("--help")
    for name in (*STAGES, *COMMANDS):
        assert f"\n  {name} " in alone.out
        own = cvae(f"{name} --help").out
        assert own.startswith(f"Usage: cvae {name}")
        assert max(map(len, own.splitlines())) <= 80
    assert "..." not in alone.out.partition("Commands:")[2]  # every summary is whole
    assert cvae("--version").out.startswith("cvae 0.")


def test_a_shell_can_complete_commands(cvae: Cvae, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_CVAE_COMPLETE": "complete_bash", "COMP_WORDS": "cvae inter", "COMP_CWORD": "1"}.items():
        monkeypatch.setenv(name, value)
    assert cvae("").out.split() == ["interpolate"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_left_is_no_error(unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    left, pipe = os.pipe()
    os.close(left)
    command = [sys.executable, "-m", "pipeline.cli", "--help"]
    done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_fresh_clone_shows_the_published_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cvae: Cvae) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert_refused(tmp_path, cvae, "study", "data/prepared/mnist.safetensors not found: run `dvc repro prepare` first")
    shutil.copytree(ROOT / PUBLISHED, PUBLISHED)
    for path in (None, PREPARED, JUDGE):  # then also where a model was trained, but no study
        if path:
            path.parent.mkdir(parents=True)
            path.write_bytes(b"there")
        answer = cvae("study")
        assert answer.status == 0, answer.err
        assert "Study of this project: from docs/results/study, as no study was run here yet" in answer.out
        assert f"{pd.read_csv(PUBLISHED / 'trials.csv')['kl_weight'].iloc[0]:.3g}" in answer.out


@pytest.fixture
def dvc(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `dvc` for `cvae try`, to be written."""
    (project / "bin").mkdir()
    (project / "bin/dvc").touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return project / "bin/dvc"


def test_an_experiment_needs_no_name_in_git(dvc: Path, cvae: Cvae, monkeypatch: pytest.MonkeyPatch) -> None:
    dvc.write_text('#!/bin/sh\necho "$GIT_AUTHOR_NAME $GIT_COMMITTER_EMAIL" > who\n', encoding="utf-8")
    Path("config").write_text("[user]\n\tname = Ada\n\temail = ada@example.org\n", encoding="utf-8")
    for settings, who in ((os.devnull, "cvae cvae\n"), (str(Path("config").absolute()), " \n")):
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", settings)
        assert cvae("try objective.kl_weight=1").status == 0
        assert Path("who").read_text(encoding="utf-8") == who


@pytest.mark.parametrize(("edit", "left"), [("1", "0.2"), ("1/; s/seed: 0/seed: 5", "1")])
def test_a_failed_experiment_puts_params_back_unless_they_were_edited_meanwhile(
    dvc: Path, cvae: Cvae, edit: str, left: str
) -> None:
    dvc.write_text(f'#!/bin/sh\nsed -i "s/kl_weight: 0.2/kl_weight: {edit}/" params.yaml\nexit 1\n', encoding="utf-8")
    answer = cvae("try objective.kl_weight=1")
    assert answer.status == 1
    assert ("was edited meanwhile" in answer.out + answer.err) == (left == "1")
    assert f"kl_weight: {left} " in Path("params.yaml").read_text(encoding="utf-8")
