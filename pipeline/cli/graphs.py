"""Parts of trained models as ONNX graphs, compared with torch before anything is written."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.base.files import sha256
from pipeline.completion.views import condition as view_condition
from pipeline.data.splits import CLASSES, SIDE
from pipeline.model.cvae import Model
from pipeline.model.density import Density
from pipeline.model.multirate import condition
from pipeline.stages.saved import kind, load_completer, load_curve, load_cvae

if TYPE_CHECKING:
    import onnx

OPSET = 20
TOLERANCE = 1e-5  # by which a graph's outputs may differ from torch's; above 1, a share of the value
TRACED, CHECKED = 3, (1, 3, 64)  # rows of a batch

Examples = Callable[[int], dict[str, Tensor]]  # from a number of rows to inputs by name


class Part(NamedTuple):
    """A graph to be: its module, which takes the examples' tensors in their order, and the names of its outputs."""

    name: str
    module: nn.Module
    examples: Examples
    outputs: tuple[str, ...]
    about: dict[str, str]


class Graph(NamedTuple):
    """An ONNX model, in words, and the largest difference between its outputs and torch's."""

    name: str
    model: "onnx.ModelProto"
    signature: str
    difference: float


class Wrapped(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class Decoder(Wrapped):
    """Digits (N,), latents (N, latent) and, for a multi-rate CVAE, KL weights (N,) to images (N, 28, 28) in [0, 1]."""

    def forward(self, digit: Tensor, z: Tensor, kl_weight: Tensor | None = None) -> Tensor:
        outputs = self.model.decode(z, _context(self.model, digit, kl_weight))
        return self.model.likelihood.mean(outputs).clamp(0, 1).view(-1, SIDE, SIDE)


class Encoder(Wrapped):
    """Images (N, 28, 28) in [0, 1], digits (N,) and perhaps KL weights (N,) to mean and log variance (N, latent)."""

    def forward(self, image: Tensor, digit: Tensor, kl_weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q = self.model.encode(image.view(-1, 1, SIDE, SIDE), _context(self.model, digit, kl_weight))
        return q.mu, q.log_var


class Fitted(nn.Module):
    """Latents (N, latent) of the fitted density, from digits (N,), uniform and standard normal noise."""

    def __init__(self, density: Density) -> None:
        super().__init__()
        self.means, self.roots = nn.Buffer(density.means), nn.Buffer(density.roots)
        ends = density.weights.cumsum(1)
        self.ends = nn.Buffer(ends[:, :-1] / ends[:, -1:])  # of all components but the last

    def forward(self, digit: Tensor, uniform: Tensor, noise: Tensor) -> Tensor:
        component = (uniform[:, None] >= self.ends[digit]).sum(1)
        return self.means[digit, component] + (self.roots[digit, component] @ noise[..., None]).squeeze(-1)


class Completion(Wrapped):
    """Images (N, 28, 28) of 0 and 1 with the hidden pixels (bool) replaced by a completion's expected ones.

    digit: (N,), −1 where it is not given. noise: (N, latent), standard normal; each noise is another completion.
    """

    def forward(self, image: Tensor, hidden: Tensor, digit: Tensor, noise: Tensor) -> Tensor:
        known = digit >= 0
        given = view_condition(image, ~hidden.flatten(1), digit.clamp_min(0), known, torch.zeros_like(known))
        context = self.model.context(given)
        outputs = self.model.decode(self.model.prior_parameters(context).sample(noise), context)
        return self.model.likelihood.mean(outputs).view(-1, SIDE, SIDE)


def _context(model: Model, digit: Tensor, kl_weight: Tensor | None) -> Any:
    return model.context(digit if kl_weight is None else condition(digit, kl_weight.log()))


def parts_of(path: Path) -> Iterator[Part]:
    """What is to be exported of a safetensors file of ours. Raises UserError for one that holds no generative model."""
    span = 1.0, 1.0
    if (holds := kind(path)) == "completion":
        completer = load_completer(path)
        if not completer.latent_size:
            raise UserError(f"{path} is the deterministic network, which samples nothing")
        examples = _examples(completer.latent_size, "image", "hidden", "digit", "noise")
        yield Part("completer", Completion(completer), examples, ("completion",), _source(path))
        return
    model: Model
    extra: tuple[str, ...] = ()
    if holds == "curve":
        model, _ = load_curve(path)
        before, extra, span = "curve_", ("kl_weight",), model.span
        about = _source(path) | {"kl_weight": f"an input from {span[0]:g} to {span[1]:g}"}
    else:
        model, density, params = load_cvae(path)
        before = ""
        about = _source(path) | {"kl_weight": f"{params['objective']['kl_weight']:g}"}
        yield Part("latents", Fitted(density), _examples(model.latent_size, "digit", "uniform", "noise"), ("z",), about)
    examples = _examples(model.latent_size, "digit", "z", *extra, span=span)
    yield Part(f"{before}decoder", Decoder(model), examples, ("image",), about)
    examples = _examples(model.latent_size, "image", "digit", *extra, span=span)
    yield Part(f"{before}encoder", Encoder(model), examples, ("mean", "log_variance"), about)


def _source(path: Path) -> dict[str, str]:
    return {"source": path.name, "source_sha256": sha256(path)}


def _examples(latents: int, *names: str, span: tuple[float, float] = (1.0, 1.0)) -> Examples:
    def made(rows: int) -> dict[str, Tensor]:
        source = torch.Generator().manual_seed(rows)
        ink = torch.rand(rows, SIDE, SIDE, generator=source)
        every = {
            "digit": torch.arange(rows) % CLASSES,
            "z": torch.randn(rows, latents, generator=source),
            "noise": torch.randn(rows, latents, generator=source),
            "uniform": torch.rand(rows, generator=source),
            "kl_weight": torch.from_numpy(np.geomspace(*span, rows)).float().clamp(*span),
            "image": ink if "hidden" not in names else ink.round(),
            "hidden": torch.rand(rows, SIDE, SIDE, generator=source) < 0.5,
        }
        return {name: every[name] for name in names}

    return made


def graph(part: Part) -> Graph:
    """The ONNX model of a part, for a batch of any size. Raises UserError where onnxruntime's outputs are not torch's.

    What torch's exporter notes in a graph, such as the places of source files, is left out.
    """
    import onnx

    example = part.examples(TRACED)
    batch = torch.export.Dim("batch")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            part.module.eval(), tuple(example.values()), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=[*example], output_names=list(part.outputs), dynamic_shapes=tuple({0: batch} for _ in example),
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for noted in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output,
                  *model.graph.initializer):  # fmt: skip
        del noted.metadata_props[:]
        noted.doc_string = ""
    signature = f"{_said(model.graph.input)} → {_said(model.graph.output)}"
    onnx.helper.set_model_props(model, part.about | {"signature": signature, "opset": str(OPSET)})
    onnx.checker.check_model(model)
    difference = max(differences(model.SerializeToString(), part, rows) for rows in CHECKED)
    if not difference <= TOLERANCE:
        beyond = f"{difference:.1g}, more than {TOLERANCE:g}"
        raise UserError(f"{part.name}: onnxruntime's outputs differ from torch's by {beyond}")
    return Graph(part.name, model, signature, difference)


def differences(content: bytes, part: Part, rows: int) -> float:
    """The largest difference between the outputs of an ONNX file's content and torch's, for so many rows."""
    import onnxruntime

    inputs = part.examples(rows)
    with torch.no_grad():
        torchs = part.module(*inputs.values())
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(list(part.outputs), {name: value.numpy() for name, value in inputs.items()})
    pairs = zip(found, torchs if isinstance(torchs, tuple) else (torchs,), strict=True)
    return max(float((np.abs(ours - theirs.numpy()) / np.abs(theirs.numpy()).clip(1)).max()) for ours, theirs in pairs)


def _said(values: Any) -> str:
    """Inputs or outputs of a graph, as `digit (batch) int64`."""
    import onnx

    said = []
    for value in values:
        tensor = value.type.tensor_type
        sizes = ", ".join(size.dim_param or str(size.dim_value) for size in tensor.shape.dim)
        said.append(f"{value.name} ({sizes}) {onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)}")
    return ", ".join(said)
