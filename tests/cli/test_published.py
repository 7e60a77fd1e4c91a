"""A fresh clone, in which nothing has run."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from commands import Cvae, assert_refused
from imports import ROOT

from pipeline.base.paths import JUDGE, PREPARED, PUBLISHED


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
