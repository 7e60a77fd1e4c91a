"""A training step of a whole population on a processor, each member on one core: kernel.cpp.

Operator by operator, all members' weights and activations pass through memory each time, and the threads wait for each
other at each. Here a core takes a member from its images to its new weights: 16 members of the article's model train
1.2 times as fast as in the same step compiled by torch, and compiling takes 2.5 seconds in place of 20
(benchmarks/README.md). population.py holds the plain step, which this one equals up to the order of its sums.
"""

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.data import CLASSES, PIXELS, to_unit
from pipeline.errors import UserError
from pipeline.likelihood import Bernoulli
from pipeline.model import CVAE, one_hot
from pipeline.objective import ObjectiveParams
from pipeline.train import TrainParams, check_compiler, compiler

TORCH = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"  # whose products it takes
SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-std=c++17", "-shared", "-fPIC")
CONDITIONINGS = ("sum", "mean", "product", "concat")  # as kernel.cpp counts them


def suits(model: CVAE, params: TrainParams, aim: ObjectiveParams) -> bool:
    """Whether the step is written for such members: dense ones with β times the KL, as a study's usually are."""
    architecture = model.architecture
    usual = architecture.architecture == "mlp" and architecture.prior == "standard"
    plain = aim.draws == 1 and aim.schedule != "capacity" and not aim.free_bits and params.clip is None
    return usual and plain and type(model.likelihood) is Bernoulli


@functools.cache
def build() -> "Library | None":
    """The step, compiled for this processor once in a process; None where this torch has no MKL to multiply with.

    Raises UserError where there is no compiler, it fails, or what it made can't be loaded.
    """
    if not torch.backends.mkl.is_available():
        return None
    check_compiler("always", torch.device("cpu"))
    command = [str(compiler()), *FLAGS, str(SOURCE), "-o"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "kernel.so"
            done = subprocess.run([*command, str(library)], capture_output=True, text=True, errors="replace")
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "error" in line]
                raise OSError(lines[0] if lines else f"it ended with {done.returncode}")
            return Library(ctypes.CDLL(str(library)), ctypes.CDLL(str(TORCH)))
    except (OSError, AttributeError) as error:
        reason = f"{command[0]} can't make a library of {SOURCE.name} ({error})"
        raise UserError(f"{reason}: name another compiler in CXX, or set train.compile never") from error


class _Tensor(ctypes.Structure):
    _fields_: ClassVar = [(name, ctypes.c_void_p) for name in ("value", "mean", "square", "average")]


class _Layer(ctypes.Structure):
    _fields_: ClassVar = [
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("weight", _Tensor),
        ("bias", _Tensor),
    ]


_SIZES = ("members", "rows", "inputs", "pixels", "classes", "latent", "conditioning", "encoders", "decoders")


class _Step(ctypes.Structure):
    _fields_: ClassVar = [
        ("multiply", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in _SIZES),
        ("layers", ctypes.POINTER(_Layer)),
        *((name, ctypes.c_void_p) for name in ("x", "one_hot", "noise", "kl_weights", "rates")),
        *((name, ctypes.c_double) for name in ("beta1", "beta2", "epsilon", "count", "decay")),
        ("figures", ctypes.c_void_p),
    ]


class Library:
    """kernel.cpp as a shared library, and the products of the BLAS that torch brings."""

    def __init__(self, code: ctypes.CDLL, blas: ctypes.CDLL) -> None:
        self.steps = {torch.float32: code.step_float, torch.float64: code.step_double}
        self.products = {torch.float32: blas.sgemm_, torch.float64: blas.dgemm_}

    def step(
        self,
        model: CVAE,
        weights: dict[str, Tensor],
        optimizer: torch.optim.Adam,
        average: tuple[dict[str, Tensor], float] | None,
        kl_weights: Tensor,
        rates: Tensor,
        batch: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        """One step of `optimizer` in place, by stacked weights (M, ...) of which `model` is the form.

        average: the averaged weights and their decay; kl_weights, rates: (M,); batch: images (B, 1, 28, 28), labels
        and noise (B, latent). Returns loss, reconstruction and kl before the step, (3, M).
        """
        images, labels, noise = batch
        dtype, architecture = noise.dtype, model.architecture
        heard = one_hot(labels, dtype).contiguous()
        x = to_unit(images).flatten(1).to(dtype)
        x = torch.cat([x, heard], dim=1) if architecture.encoder_sees_label else x.contiguous()
        figures = torch.empty(3, len(rates), dtype=dtype)
        names = _layers(model)
        hidden = len(architecture.encoder_hidden), len(architecture.decoder_hidden)
        assert len(names) == sum(hidden) + 3 + (architecture.conditioning != "concat")  # which the kernel reads
        layers = (_Layer * len(names))()
        for layer, name in zip(layers, names, strict=True):
            weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
            layer.outputs, layer.inputs = weight.shape[1:]
            layer.weight = _pointers(f"{name}.weight", weight, optimizer, average)
            layer.bias = _pointers(f"{name}.bias", bias, optimizer, average)
        steps = [optimizer.state[weight]["step"] for weight in weights.values()]
        torch._foreach_add_(steps, 1)
        (group,) = optimizer.param_groups
        step = _Step(
            multiply=ctypes.cast(self.products[dtype], ctypes.c_void_p),
            members=len(rates),
            rows=len(x),
            inputs=x.shape[1],
            pixels=PIXELS,
            classes=CLASSES,
            latent=model.latent_size,
            conditioning=CONDITIONINGS.index(architecture.conditioning),
            encoders=hidden[0],
            decoders=hidden[1],
            layers=layers,
            x=x.data_ptr(),
            one_hot=heard.data_ptr(),
            noise=noise.data_ptr(),
            kl_weights=kl_weights.data_ptr(),
            rates=rates.data_ptr(),
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            epsilon=group["eps"],
            count=float(steps[0]),
            decay=0.0 if average is None else average[1],
            figures=figures.data_ptr(),
        )
        self.steps[dtype](ctypes.byref(step))
        return figures


def _layers(model: CVAE) -> list[str]:
    """Names of the model's Linears in the order in which kernel.cpp has them."""
    parts = ("encoder", "mu", "log_var", "condition", "decoder", "pixels")
    modules = (pair for part in parts for pair in model.get_submodule(part).named_modules(prefix=part))
    return [name for name, module in modules if isinstance(module, nn.Linear)]


def _pointers(
    name: str, weight: Tensor, optimizer: torch.optim.Adam, average: tuple[dict[str, Tensor], float] | None
) -> _Tensor:
    """Where a stacked weight lies, and what moves with it; Adam's moments begin here, as in its own first step."""
    state = optimizer.state[weight]
    if not state:
        state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
    tensors = [weight, state["exp_avg"], state["exp_avg_sq"], *([] if average is None else [average[0][name]])]
    assert all(tensor.is_contiguous() for tensor in tensors)
    return _Tensor(*(tensor.data_ptr() for tensor in tensors))
