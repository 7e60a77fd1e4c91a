"""A small project to work in, and `cvae` in this process."""

import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import Answer, Cvae
from imports import ROOT
from settings import model_params

from pipeline.base.files import write_json, write_table
from pipeline.base.params import read
from pipeline.base.paths import BEST, DOCTOR, METRICS, PER_CLASS, RUN, VALIDATION
from pipeline.cli.main import main
from pipeline.model.cvae import build, resolve
from pipeline.model.density import Density
from pipeline.stages.saved import save_cvae


@pytest.fixture
def cvae(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cvae:
    """Runs `cvae WORDS`."""

    def run(words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["cvae", *shlex.split(words)])
        capsys.readouterr()  # what was said before
        with pytest.raises(SystemExit) as end:
            main()
        return Answer(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with params.yaml and an untrained model of two latent dimensions."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    saved = read(ROOT / "params.yaml")
    saved["model"] |= {"latent_size": 2, "encoder_hidden": [8], "decoder_hidden": [8]}
    density = Density(
        weights=torch.ones(10, 1),
        means=torch.arange(10.0)[:, None, None].expand(10, 1, 2),
        roots=torch.eye(2).expand(10, 1, 2, 2),
    )
    model = build(resolve(model_params(latent_size=2, encoder_hidden=(8,), decoder_hidden=(8,))), 0)
    with torch.no_grad():
        for weight in (*model.decoder.parameters(), model.pixels.weight):
            weight *= 5  # so that latents and labels change the pictures
    (tmp_path / "models").mkdir()
    save_cvae(tmp_path / "models/cvae.safetensors", model, density, saved)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def reported(project: Path) -> Path:
    """The project after an evaluation, the doctor and a study, with another frechet on test than on validation."""
    samplers, of_samples = ("prior", "fitted", "real"), {"class_accuracy": 0.98765, "diversity": 0.9, "coverage": 0.94}
    fit = {"reconstruction": 68.7, "kl": 35.41, "elbo": -104.1, "nll": 99.37, "active_units": 15, "collapsed": True}
    protocol = {"split": "test", "images": 10_000, "kl_weight": 0.2, "pixels": "grey", "nll_draws": 500}
    write_json(METRICS, fit | dict.fromkeys(samplers, of_samples | {"frechet": 3.75}) | {"protocol": protocol})
    several = protocol | {"split": "validation", "images": 5000, "sample_sets": 3}
    deviation = dict.fromkeys(samplers, dict.fromkeys(of_samples, 0.0123) | {"frechet": 0.123})
    figures = fit | dict.fromkeys(samplers, of_samples | {"frechet": 2.36})
    write_json(VALIDATION, figures | {"protocol": several, "standard_deviation": deviation})
    write_json(DOCTOR, {"verdict": "prior_hole"})
    write_json(BEST, {"interval": [0.1, 0.25], "values": {"validation/fitted/frechet": 4.551}})
    write_json(RUN, {"run_id": "0a1b", "run_key": "2c3d", "tracking_uri": "", "hashes": {"data": "4e5f"}})
    rows = [{"sampler": one, "digit": digit} | dict.fromkeys((*of_samples, "frechet"), tens + digit + 0.5)
            for one, tens in zip(samplers, (0, 10, 20), strict=True) for digit in range(10)]  # fmt: skip
    write_table(PER_CLASS, pd.DataFrame(rows))
    return project
