"""Exported graphs do in onnxruntime what the models do in torch."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import packaged
import pytest
import torch
from commands import Cvae, assert_refused
from latents import density, normal
from settings import OURS, model_params, objective_params

from pipeline.base.params import parse, plain
from pipeline.cli import graphs
from pipeline.completion import model as completion
from pipeline.completion.masks import named_masks
from pipeline.model import cvae, samples
from pipeline.model.networks import one_hot
from pipeline.stages.saved import save_completer, save_curve, save_cvae
from pipeline.weight import curve
from pipeline.weight.curve import WeightParams

pytestmark = pytest.mark.slow
SMALL = {"latent_size": 2, "encoder_hidden": (9,), "decoder_hidden": (9,)}


def run(graph: graphs.Graph, **inputs: Any) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph.model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {name: torch.as_tensor(value).numpy() for name, value in inputs.items()}))


@pytest.mark.parametrize(
    ("shape", "likelihood"),
    [
        ({"conditioning": "sum", "encoder_sees_label": False}, "sigma_optimal"),
        ({"architecture": "resnet", "channels": (3, 4)}, "discretized_logistic"),
    ],
)
def test_a_cvae_s_graphs_sample_encode_and_decode(shape: dict[str, Any], likelihood: str, tmp_path: Path) -> None:
    params, aim = model_params(**SMALL | shape), objective_params(likelihood=likelihood)
    model = cvae.build(cvae.resolve(params), 0, likelihood)
    save_cvae(tmp_path / "cvae.safetensors", model, density(), {"model": plain(params), "objective": plain(aim)})
    of = {part.name: graphs.graph(part) for part in graphs.parts_of(tmp_path / "cvae.safetensors")}
    digits, noise = torch.arange(7), normal(7, 2).float()
    (z,) = run(of["latents"], digit=digits, uniform=torch.tensor([0.5] * 3 + [0.2] + [0.5] * 3), noise=noise)
    assert np.allclose(z[3], density().means[3, 0] + density().roots[3, 0] @ noise[3], atol=1e-5)
    assert np.allclose(z[5], density().means[5, 0] + density().roots[5, 0] @ noise[5], atol=1e-5)
    (image,) = run(of["decoder"], digit=digits, z=z)
    assert np.allclose(image, samples.decode(model, torch.from_numpy(z), digits).squeeze(1).detach(), atol=1e-5)
    mean, log_variance = run(of["encoder"], image=image, digit=digits)
    q = model.encode(torch.from_numpy(image)[:, None], digits)
    assert np.allclose(mean, q.mu.detach(), atol=1e-5)
    assert np.allclose(log_variance, q.log_var.detach(), atol=1e-5)
    notes = {note.key: note.value for note in of["decoder"].model.metadata_props}
    assert notes["signature"] == "digit (batch) int64, z (batch, 2) float32 → image (batch, 28, 28) float32"
    assert (notes["opset"], notes["kl_weight"], notes["source"]) == ("20", "1", "cvae.safetensors")
    assert b"site-packages" not in of["decoder"].model.SerializeToString()


def test_the_curve_s_graphs_are_the_cvae_at_each_weight(tmp_path: Path) -> None:
    weight, shape = parse(WeightParams, OURS["weight"], "weight"), model_params(**SMALL)
    model = curve.build(shape, objective_params(), weight, 0)
    with torch.no_grad():
        for part in model.network.parameters():
            part.add_(0.2 * normal(*part.shape).float())
    path = tmp_path / "curve.safetensors"
    save_curve(path, model, {"model": plain(shape), "objective": plain(objective_params()), "weight": plain(weight)})
    digits, z, weights = torch.arange(4), normal(4, 2).float(), [0.01, 0.3, 2.0, 30.0]
    parts = {part.name: part for part in graphs.parts_of(path)}
    decoder = graphs.graph(parts["curve_decoder"])
    (images,) = run(decoder, digit=digits, z=z, kl_weight=weights)
    for row, one in enumerate(weights):
        alone = samples.decode(model.at(one), z[row : row + 1], digits[row : row + 1])
        assert np.allclose(images[row], alone[0, 0], atol=1e-5)
    content = decoder.model.SerializeToString()
    assert max(graphs.differences(content, parts["curve_decoder"], rows) for rows in (2, 7, 500)) < 1e-5
    (mean, _) = run(graphs.graph(parts["curve_encoder"]), image=images, digit=digits, kl_weight=weights)
    assert np.allclose(mean[2], model.at(2.0).encode(torch.from_numpy(images)[2:3, None], digits[2:3]).mu, atol=1e-5)


def test_the_completer_s_graph_fills_in_what_is_hidden(tmp_path: Path) -> None:
    save_completer(tmp_path / "completer.safetensors", model := packaged.completer())
    graph = graphs.graph(next(graphs.parts_of(tmp_path / "completer.safetensors")))
    image, visible, noise = normal(1, 28, 28).float().gt(0).float(), named_masks()["top"], normal(1, 3).float()
    for digit in (-1, 4):
        (found,) = run(graph, image=image, hidden=~visible[None], digit=[digit], noise=noise)
        assert np.array_equal(found[0, visible.numpy()], image[0, visible].numpy())
        label = one_hot(torch.tensor([max(digit, 0)]), torch.float32) * (digit >= 0)
        seen = torch.where(visible, 2 * image - 1, 0).flatten(1)
        context = model.context(torch.cat([seen, label, torch.zeros(1, 1)], 1))
        z = model.prior_parameters(context).sample(noise)
        theirs = model.decode(z, context).sigmoid().view(28, 28).detach()
        assert np.allclose(found[0], theirs, atol=1e-5)


def test_a_graph_that_differs_from_torch_is_not_written(tmp_path: Path) -> None:
    save_completer(tmp_path / "completer.safetensors", completion.build(3, 16, 0))
    part = next(iter(graphs.parts_of(tmp_path / "completer.safetensors")))
    content = graphs.graph(part).model.SerializeToString()
    assert graphs.differences(content, part, 2) < graphs.TOLERANCE
    wrong = replace_weights(content)
    assert graphs.differences(wrong, part, 2) > graphs.TOLERANCE


def replace_weights(content: bytes) -> bytes:
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.01), tensor.name))
    changed: bytes = model.SerializeToString()
    return changed


def test_export_writes_the_trained_models_and_says_their_shapes(project: Path, cvae: Cvae) -> None:
    save_completer(project / "models/completer.safetensors", completion.build(3, 16, 0))
    answer = cvae("export --out to/onnx")
    assert answer.status == 0, answer.err
    names = {path.name for path in (project / "to/onnx").iterdir()}
    assert names == {"decoder.onnx", "encoder.onnx", "latents.onnx", "completer.onnx"}
    assert "decoder.onnx" in answer.out
    assert "z (batch, 2) float32 → image (batch, 28, 28) float32" in answer.out
    assert "opset 20" in answer.out


def test_what_cannot_be_exported_is_refused_in_one_line(
    project: Path, cvae: Cvae, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "garbage").write_bytes(b"no tensors")
    assert_refused(project, cvae, "export --model none.safetensors", "none.safetensors not found")
    assert_refused(project, cvae, "export --model garbage", "garbage holds no cvae")
    assert_refused(project, cvae, "export --format torch", "'torch' is not")
    assert_refused(project, cvae, "export --out garbage", "garbage can't be written")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_refused(project, cvae, "export", "the export needs onnxruntime, which is not installed: `pip install")
