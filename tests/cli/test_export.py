"""Exported graphs do in onnxruntime what the models do in torch. Each graph is made once: the exporter is slow."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import packaged
import pytest
import torch
from commands import Cvae, assert_refused
from latents import density, normal
from settings import model_params, objective_params

from pipeline.base.errors import UserError
from pipeline.base.params import plain
from pipeline.cli import graphs
from pipeline.completion.masks import named_masks
from pipeline.model import cvae, samples
from pipeline.model.networks import one_hot
from pipeline.stages.saved import load_completer, load_curve, load_cvae, save_cvae

pytestmark = pytest.mark.slow
SHAPE = model_params(
    latent_size=2, architecture="resnet", channels=(3, 4), conditioning="sum", encoder_sees_label=False
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cvae.safetensors`, a network that has little in common with the curve's, `curve` and `completer`."""
    folder = tmp_path_factory.mktemp("models")
    packaged.save_three(folder)
    model, aim = cvae.build(cvae.resolve(SHAPE), 0, "discretized_logistic"), {"likelihood": "discretized_logistic"}
    params = {"model": plain(SHAPE), "objective": plain(objective_params(**aim))}
    save_cvae(folder / "cvae.safetensors", model, density(), params)
    return folder


@pytest.fixture(scope="module")
def parts(models: Path) -> dict[str, graphs.Part]:
    return {part.name: part for name in sorted(models.iterdir()) for part in graphs.parts_of(name)}


@pytest.fixture(scope="module")
def made(parts: dict[str, graphs.Part]) -> dict[str, graphs.Graph]:
    return {name: graphs.graph(part) for name, part in parts.items()}


def run(graph: graphs.Graph, **inputs: Any) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: torch.as_tensor(value).numpy() for name, value in inputs.items()}))


def test_a_cvae_s_graphs_sample_and_decode(models: Path, made: dict[str, graphs.Graph]) -> None:
    model, _, _ = load_cvae(models / "cvae.safetensors")
    digits, noise = torch.arange(7), normal(7, 2).float()
    (z,) = run(made["latents"], digit=digits, uniform=torch.tensor([0.5] * 3 + [0.2] + [0.5] * 3), noise=noise)
    for digit in (3, 5):
        assert np.allclose(z[digit], density().means[digit, 0] + density().roots[digit, 0] @ noise[digit], atol=1e-5)
    (image,) = run(made["decoder"], digit=digits, z=z)
    assert np.allclose(image, samples.decode(model, torch.from_numpy(z), digits).squeeze(1).detach(), atol=1e-5)
    notes = {note.key: note.value for note in made["decoder"].model.metadata_props}
    assert notes["signature"] == "digit (batch) int64, z (batch, 2) float32 → image (batch, 28, 28) float32"
    assert (notes["opset"], notes["kl_weight"], notes["source"]) == ("20", "1", "cvae.safetensors")
    assert b"site-packages" not in made["decoder"].model.SerializeToString()


def test_the_curve_s_graphs_are_the_cvae_at_each_weight(
    models: Path, parts: dict[str, graphs.Part], made: dict[str, graphs.Graph]
) -> None:
    model, _ = load_curve(models / "curve.safetensors")
    digits, z, weights = torch.arange(4), normal(4, 2).float(), [0.01, 0.3, 2.0, 30.0]
    (images,) = run(made["curve_decoder"], digit=digits, z=z, kl_weight=weights)
    for row, one in enumerate(weights):
        alone = samples.decode(model.at(one), z[row : row + 1], digits[row : row + 1])
        assert np.allclose(images[row], alone[0, 0], atol=1e-5)
    content = made["curve_decoder"].model.SerializeToString()
    assert max(graphs.differences(content, parts["curve_decoder"], rows) for rows in (2, 500)) < graphs.TOLERANCE
    mean, log_variance = run(made["curve_encoder"], image=images, digit=digits, kl_weight=weights)
    q = model.at(2.0).encode(torch.from_numpy(images)[2:3, None], digits[2:3])
    assert np.allclose(mean[2], q.mu, atol=1e-5)
    assert np.allclose(log_variance[2], q.log_var, atol=1e-5)


def test_the_completer_s_graph_fills_in_what_is_hidden(models: Path, made: dict[str, graphs.Graph]) -> None:
    model = load_completer(models / "completer.safetensors")
    image, visible, noise = normal(1, 28, 28).float().gt(0).float(), named_masks()["top"], normal(1, 3).float()
    for digit in (-1, 4):
        (found,) = run(made["completer"], image=image, hidden=~visible[None], digit=[digit], noise=noise)
        assert np.array_equal(found[0, visible.numpy()], image[0, visible].numpy())
        label = one_hot(torch.tensor([max(digit, 0)]), torch.float32) * (digit >= 0)
        seen = torch.where(visible, 2 * image - 1, 0).flatten(1)
        context = model.context(torch.cat([seen, label, torch.zeros(1, 1)], 1))
        z = model.prior_parameters(context).sample(noise)
        theirs = model.decode(z, context).sigmoid().view(28, 28).detach()
        assert np.allclose(found[0], theirs, atol=1e-5)


def test_a_graph_that_differs_from_torch_is_refused(
    parts: dict[str, graphs.Part], made: dict[str, graphs.Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = onnx.ModelProto()
    wrong.CopyFrom(made["completer"].model)
    for tensor in (one for one in wrong.graph.initializer if one.data_type == onnx.TensorProto.FLOAT):
        values = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model_proto=wrong))
    with pytest.raises(UserError, match="completer: onnxruntime's outputs differ from torch's by"):
        graphs.graph(parts["completer"])


@pytest.fixture
def folder(models: Path, made: dict[str, graphs.Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the models, whose graphs are those already made."""
    (tmp_path / "models").symlink_to(models)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(graphs, "graph", lambda part: made[part.name])
    return tmp_path


def test_export_writes_the_trained_models_and_says_their_shapes(folder: Path, cvae: Cvae) -> None:
    answer = cvae("export --out to/onnx")
    assert answer.status == 0, answer.err
    names = {"decoder", "encoder", "latents", "curve_decoder", "curve_encoder", "completer"}
    assert {path.name for path in (folder / "to/onnx").iterdir()} == {f"{name}.onnx" for name in names}
    assert "z (batch, 2) float32 → image (batch, 28, 28) float32" in answer.out
    assert "opset 20" in answer.out


def test_what_cannot_be_exported_is_refused_in_one_line(
    folder: Path, cvae: Cvae, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "garbage").write_bytes(b"no tensors")
    assert_refused(folder, cvae, "export --model none.safetensors", "none.safetensors not found")
    assert_refused(folder, cvae, "export --model garbage", "garbage holds no cvae")
    assert_refused(folder, cvae, "export --out garbage", "garbage can't be written")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_refused(folder, cvae, "export", "the export needs onnxruntime, which is not installed: `pip install")
