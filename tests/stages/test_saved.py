"""Files of weights and data: what is saved comes back, and any other file is refused in one line with the remedy."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from latents import density
from safetensors.torch import save_file
from settings import model_params, objective_params, train_params
from torch import Tensor

from pipeline.base.errors import UserError
from pipeline.base.params import plain
from pipeline.data.splits import Split
from pipeline.measure import judge
from pipeline.model.cvae import CVAE, build, resolve
from pipeline.stages import saved as files
from pipeline.training.fit import Training, start

SMALL = {"latent_size": 2, "encoder_hidden": (8,), "decoder_hidden": (8,)}
LOADERS: dict[str, Callable[[Path], Any]] = {
    "repro prepare": lambda path: files.load_splits(path, "train"),
    "repro judge": files.load_judges,
    "repro train": files.load_cvae,
    "repro completion/dvc.yaml": files.load_completer,
}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def numbered(size: int) -> Split:
    pixels = torch.arange(size, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
    return Split(pixels, torch.arange(size) % 10)


def saved_cvae(path: Path, likelihood: str = "bernoulli", nan: bool = False, **other: Any) -> CVAE:
    """nan: with a weight that is no number. other: values of the section `model` that are not the weights' own."""
    chosen = model_params(**SMALL)
    params = {"model": plain(chosen) | other, "objective": plain(objective_params(likelihood=likelihood))}
    model = build(resolve(chosen), 5, likelihood)
    with torch.no_grad():
        next(model.parameters()).mul_(float("nan") if nan else 1)
    files.save_cvae(path, model, density(), params)
    return model


def test_splits_come_back_by_name(tmp_path: Path) -> None:
    splits = {name: numbered(size) for name, size in (("train", 20), ("validation", 5), ("test", 9))}
    files.save_splits(tmp_path / "new/mnist.safetensors", splits)
    (tmp_path / "plain").touch()
    made = (tmp_path / "new/mnist.safetensors", tmp_path / "plain")
    assert len({path.stat().st_mode for path in made}) == 1  # colleagues can read it
    test, train = files.load_splits(tmp_path / "new/mnist.safetensors", "test", "train")
    for loaded, saved in ((test, splits["test"]), (train, splits["train"])):
        assert torch.equal(loaded.images, saved.images)
        assert torch.equal(loaded.labels, saved.labels)
    with pytest.raises(UserError, match=r"holds no splits .*dvc repro prepare"):
        files.load_splits(tmp_path / "new/mnist.safetensors", "other")


def test_both_judges_come_back_ready_to_read(tmp_path: Path) -> None:
    saved = judge.Judges(tolerant=judge.build(3), plain=judge.build(4))
    files.save_judges(tmp_path / "judge.safetensors", saved, {"seed": 3})
    loaded = files.load_judges(tmp_path / "judge.safetensors")
    for own, other in zip(loaded, saved, strict=True):
        assert same(own.state_dict(), other.state_dict())
        assert not own.training
        assert not any(parameter.requires_grad for parameter in own.parameters())


def test_a_cvae_comes_back_with_its_density_and_params(tmp_path: Path) -> None:
    model = saved_cvae(tmp_path / "m.safetensors", "sigma_optimal")
    saved = files.load_cvae(tmp_path / "m.safetensors")
    assert (saved.params["model"]["latent_size"], saved.params["objective"]["likelihood"]) == (2, "sigma_optimal")
    assert all(map(torch.equal, saved.density, density()))
    assert same(saved.model.state_dict(), model.state_dict())


MAKERS: dict[str, Callable[[Path], object]] = {
    "missing": lambda _: None,
    "a folder": lambda path: path.mkdir(),
    "no safetensors": lambda path: path.write_bytes(b"version https://git-lfs"),
    "another kind": lambda path: save_file({"weight": torch.zeros(2)}, path, {"kind": "training"}),
    "another shape": lambda path: saved_cvae(path, latent_size=3),
    "a weight that is no number": lambda path: saved_cvae(path, nan=True),
}


@pytest.mark.parametrize("make", MAKERS)
def test_any_other_file_is_refused_with_the_remedy(tmp_path: Path, make: str) -> None:
    MAKERS[make](tmp_path / "x.safetensors")
    for remedy, load in LOADERS.items():
        with pytest.raises(UserError, match=rf"x\.safetensors.*`?dvc {remedy}`") as caught:
            load(tmp_path / "x.safetensors")
        assert "\n" not in str(caught.value)


ALIEN: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "another kind": lambda path: save_file({"weight": torch.zeros(2)}, path, {"kind": "cvae", "params": "{}"}),
    "no params": lambda path: save_file({"weight": torch.zeros(2)}, path, {"kind": "training", "params": "null"}),
    "a list": lambda path: save_file({"weight": torch.zeros(2)}, path, {"kind": "training", "params": "[[]]"}),
    "brackets": lambda path: save_file({"w": torch.zeros(2)}, path, {"kind": "training", "params": "[" * 100_000}),
    "no tensors": lambda path: save_file(
        {"weight": torch.zeros(2)}, path, {"kind": "training", "params": '{"epoch": 0, "notes": {"history": []}}'}
    ),
}


@pytest.mark.parametrize("make", ALIEN)
def test_a_file_that_is_no_checkpoint_is_put_aside_and_changes_nothing(
    tmp_path: Path, make: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def training(seed: int) -> Training[Any]:
        return start(build(resolve(model_params(**SMALL)), seed), train_params(), torch.device("cpu"))

    path, new = tmp_path / "0.safetensors", training(2)
    files.save_training(path, training(1), {"history": []})
    ALIEN[make](path)
    assert files.resume_training(path, new) is None
    assert same(new.model.state_dict(), training(2).model.state_dict())
    assert new.epoch == 0
    assert not path.exists()
    assert (tmp_path / "0.broken").exists()
    said = capsys.readouterr().err
    assert "the training starts anew" in said
    assert said.count("\n") == 1


def load_history(path: Path) -> Any:
    return files.load_table(path, files.REMEDY["cvae"])


POINTERS = ("", "null", "[]", "{}", "[" * 100_000, '{"run_id": 1, "tracking_uri": ""}', "\0")
HISTORIES = ("", "epoch,kl\n", "\0\0", "<html>", 'epoch,kl\n1,"a\nb"', "epoch\n1,2\n1,2,3\n")


@pytest.mark.parametrize(("load", "contents"), [(files.load_pointer, POINTERS), (load_history, HISTORIES)])
def test_a_file_that_is_no_pointer_or_no_history_is_refused_with_the_remedy(
    tmp_path: Path, load: Callable[[Path], Any], contents: tuple[str, ...]
) -> None:
    for content in contents:
        (tmp_path / "report").write_text(content)
        with pytest.raises(UserError, match=r"report.*dvc repro train`$") as caught:
            load(tmp_path / "report")
        assert "\n" not in str(caught.value)
