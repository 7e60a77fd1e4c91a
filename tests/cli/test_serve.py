"""What a packaged model answers, with and without a curve and a completer beside it. Its server: tests/tracking."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from packaged import IMAGE, WEIGHT, save_three

from pipeline.base.errors import UserError
from pipeline.cli.serve import Served
from pipeline.completion import model as completion
from pipeline.completion.masks import named_masks
from pipeline.model.samples import sample
from pipeline.stages.saved import load_completer, load_curve

TOP = named_masks()["top"].numpy()
COMPLETION = {"image": IMAGE.tolist(), "mask": "top", "seed": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packaged model's folder, with all that may lie beside its weights."""
    folder = tmp_path_factory.mktemp("packaged")
    save_three(folder)
    (folder / "data").mkdir()
    (folder / "cvae.safetensors").rename(folder / "data/cvae.safetensors")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Served:
    return Served(folder / "data/cvae.safetensors")


def test_a_seeded_request_has_one_answer_whatever_the_others_are(served: Served) -> None:
    request = {"digit": 3, "seed": 5}
    alone, among = served.answers([request])[0], served.answers([{"digit": 1}, {"digit": 3, "seed": 6}, request])
    assert alone.shape == (28, 28)
    assert np.array_equal(alone, among[2])
    assert not np.array_equal(alone, among[1])
    several = np.stack(served.answers([request | {"count": 4}] * 2))
    assert several[0].shape == (4, 28, 28)
    assert np.array_equal(several[0], several[1])
    assert not np.array_equal(served.answers([{"digit": 3}]), served.answers([{"digit": 3}]))


def test_a_weight_is_that_of_the_curve_and_its_density(served: Served, folder: Path) -> None:
    path = folder / "curve.safetensors"
    network, densities = load_curve(path)
    model, density = network.at(0.5), densities.at(0.5)
    for sampler in ("prior", "fitted"):
        found = served.answers([{"digit": 3, "seed": 5, "kl_weight": 0.5, "sampler": sampler, "count": 2}])[0]
        assert np.array_equal(found, sample(model, density, torch.tensor([3, 3]), sampler, 5).squeeze(1))
    own = np.stack(served.answers([{"digit": 3, "seed": 5}, {"digit": 3, "seed": 5, "kl_weight": WEIGHT}]))
    assert np.array_equal(own[0], own[1])


def test_what_is_visible_stays_and_the_completer_does_the_rest(served: Served, folder: Path) -> None:
    found = served.answers([COMPLETION | {"count": 3, "digit": 4}])[0]
    ink = (torch.from_numpy(IMAGE) >= 0.5).float()
    model = load_completer(folder / "completer.safetensors")
    assert np.array_equal(found, completion.complete(model, ink, torch.from_numpy(TOP), 4, 3, 1).images)
    by_curve = np.stack(served.answers([COMPLETION | {"count": 3, "kl_weight": 2}] * 2))
    assert np.array_equal(by_curve[0], by_curve[1])
    assert (by_curve[0][:, TOP] == IMAGE[TOP]).all()
    assert by_curve[0].shape == (3, 28, 28)
    mask = (~TOP).astype(int).tolist()
    assert np.array_equal(by_curve[0], served.answers([COMPLETION | {"count": 3, "kl_weight": 2, "mask": mask}])[0])


def test_a_model_alone_has_its_own_weight_and_still_completes(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(folder / "data/cvae.safetensors", tmp_path / "data")
    alone = Served(tmp_path / "data/cvae.safetensors")
    assert (alone.answers([COMPLETION])[0][TOP] == IMAGE[TOP]).all()
    with pytest.raises(UserError, match=f"kl_weight must be {WEIGHT:g}: no curve"):
        alone.answers([{"digit": 3, "kl_weight": 2}])
    shutil.copy(folder / "completer.safetensors", tmp_path / "data")
    completer = Served(tmp_path / "data/completer.safetensors")
    assert completer.answers([COMPLETION])[0].shape == (28, 28)
    with pytest.raises(UserError, match="completes pictures: give image and mask"):
        completer.answers([{"digit": 3}])


def test_a_table_is_read_row_by_row(served: Served) -> None:
    found = served.predict(pd.DataFrame({"digit": [3, 3], "seed": [5, 5], "kl_weight": [None, 0.5]}))
    assert np.array_equal(found, served.answers([{"digit": 3, "seed": 5}, {"digit": 3, "seed": 5, "kl_weight": 0.5}]))
    with pytest.raises(MlflowException, match=r"digit must be a valid integer, not 3\.5") as caught:
        served.predict(pd.DataFrame({"digit": [3.5]}))
    assert caught.value.error_code == "BAD_REQUEST"


def test_too_many_pictures_are_refused_before_any_work(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_answer", None)
    with pytest.raises(UserError, match=r"an answer may have 1,000 pictures, not 1,001"):
        served.answers([{"digit": 3, "count": 1000}, {"digit": 3}])
