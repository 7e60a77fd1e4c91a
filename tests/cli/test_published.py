"""A fresh clone, in which nothing has run."""

import shutil
from pathlib import Path

import pytest
from commands import Cvae, assert_refused
from imports import ROOT
from studies import finished, having

from pipeline.base.paths import JUDGE, PREPARED, PUBLISHED


def test_a_fresh_clone_shows_the_published_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cvae: Cvae) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    shutil.copy(ROOT / "params.yaml", clone)
    monkeypatch.chdir(clone)
    assert_refused(clone, cvae, "study", "data/prepared/mnist.safetensors not found: run `dvc repro prepare` first")
    study = finished(tmp_path / "elsewhere", having(trials=3, epochs=1, seeds=2))
    (clone / PUBLISHED).mkdir(parents=True)
    study.seeds().to_csv(PUBLISHED / "seeds.csv", index=False)
    study.table().to_csv(PUBLISHED / "trials.csv", index=False)
    for path in (None, PREPARED, JUDGE):  # then also where a model was trained, but no study
        if path:
            path.parent.mkdir(parents=True)
            path.write_bytes(b"there")
        answer = cvae("study")
        assert answer.status == 0, answer.err
        assert "Study of this project: from docs/results/study, as no study was run here yet" in answer.out
        assert f"{study.table()['kl_weight'].iloc[0]:.3g}" in answer.out
