"""Files of weights and data: what is saved comes back, and any other file is refused in one line with the remedy."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from settings import model_params, objective_params
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.params import plain
from pipeline.completion import model as completion
from pipeline.data.splits import Split
from pipeline.measure import judge
from pipeline.model.cvae import build, resolve
from pipeline.model.density import Density
from pipeline.stages.saved import (
    kind,
    load_completer,
    load_cvae,
    load_judge,
    load_splits,
    save_completer,
    save_cvae,
    save_judge,
    save_splits,
)

SMALL = {"latent_size": 2, "encoder_hidden": (8,), "decoder_hidden": (8,)}
DENSITY = Density(torch.ones(10, 1), torch.randn(10, 1, 2), torch.eye(2).expand(10, 1, 2, 2))
LOADERS: dict[str, Callable[[Path], Any]] = {
    "repro prepare": lambda path: load_splits(path, "train"),
    "repro judge": load_judge,
    "repro train": load_cvae,
    "repro completion/dvc.yaml": load_completer,
}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def numbered(size: int) -> Split:
    pixels = torch.arange(size, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    return Split(pixels, torch.arange(size) % 10)


def test_splits_come_back_by_name(tmp_path: Path) -> None:
    splits = {name: numbered(size) for name, size in (("train", 20), ("validation", 5), ("test", 9))}
    save_splits(tmp_path / "new/mnist.safetensors", splits)
    test, train = load_splits(tmp_path / "new/mnist.safetensors", "test", "train")
    for loaded, saved in ((test, splits["test"]), (train, splits["train"])):
        assert torch.equal(loaded.images, saved.images)
        assert torch.equal(loaded.labels, saved.labels)
    with pytest.raises(UserError, match=r"holds no splits .*dvc repro prepare"):
        load_splits(tmp_path / "new/mnist.safetensors", "other")


def test_a_judge_comes_back_ready_to_read(tmp_path: Path) -> None:
    saved = judge.build(3)
    save_judge(tmp_path / "judge.safetensors", saved, {"seed": 3})
    loaded = load_judge(tmp_path / "judge.safetensors")
    assert same(loaded.state_dict(), saved.state_dict())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_cvae_comes_back_with_its_density_and_params(tmp_path: Path) -> None:
    chosen, path = model_params(**SMALL), tmp_path / "m.safetensors"
    params = {"model": plain(chosen), "objective": plain(objective_params(likelihood="sigma_optimal"))}
    model = build(resolve(chosen), 5, "sigma_optimal")
    save_cvae(path, model, DENSITY, params)
    saved = load_cvae(path)
    assert saved.params == params
    assert same(saved.density.tensors(), DENSITY.tensors())
    assert same(saved.model.state_dict(), model.state_dict())


def test_a_completer_comes_back(tmp_path: Path) -> None:
    model = completion.build(3, 16, 1)
    save_completer(tmp_path / "m.safetensors", model)
    assert kind(tmp_path / "m.safetensors") == "completion"
    assert same(load_completer(tmp_path / "m.safetensors").state_dict(), model.state_dict())


def of_other_params(path: Path) -> None:
    chosen = model_params(**SMALL)
    params = {"model": plain(chosen) | {"latent_size": 3}, "objective": plain(objective_params())}
    save_cvae(path, build(resolve(chosen), 0), DENSITY, params)


@pytest.mark.parametrize("remedy", LOADERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda _: None,
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b"version https://git-lfs"),
        lambda path: save_file({"weight": torch.zeros(2)}, path, {"kind": "training"}),
        of_other_params,
    ],
    ids=["missing", "a folder", "no safetensors", "another kind", "another shape"],
)
def test_any_other_file_is_refused_with_the_remedy(tmp_path: Path, make: Callable[[Path], None], remedy: str) -> None:
    make(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=rf"x\.safetensors.*`?dvc {remedy}`") as caught:
        LOADERS[remedy](tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
