"""The contenders: the same model from the same weights on the same images, each trained in its own way.

A contender is a generator. It yields the seconds of each round of `steps` batches, and its network holds what it has
learned so far. All but `pythae` use the same learning rates for as many steps, so those of one batch size should end
at the same elbo, whatever the order of images and the noise. tests/benchmarks/test_benchmarks.py checks that.

- `dataloader`: the loop a user would write, with torchvision's MNIST, ToTensor, DataLoader, Adam, and the loss read at
  each step.
- `lightning`: Lightning's Trainer without logger, checkpoint and progress bar, on a TensorDataset in memory.
- `pythae`: pythae's trainer with its VAE, which has the same layers but no label.
- `ours`: the training loop of this project.
"""

import contextlib
import io
import logging
import multiprocessing
import os
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.machine import wait
from pipeline import SPINNING, SPINS
from pipeline.data.idx import FILES
from pipeline.data.splits import Split, to_unit
from pipeline.model.cvae import CVAE, PRESETS, Init, build
from pipeline.model.networks import mlp
from pipeline.training import fit as train
from pipeline.training import objective, schedule
from pipeline.training.fit import TrainParams
from pipeline.training.objective import ObjectiveParams
from pipeline.training.validation import labelled, validate


@dataclass(frozen=True)
class Setting:
    """What all contenders of a race share, except the batch size."""

    preset: str
    train: Split
    validation: Split
    params: TrainParams
    aim: ObjectiveParams
    rounds: int  # each is an epoch of `train`
    init: Init = "torch"

    @property
    def device(self) -> torch.device:
        return self.train.images.device

    @property
    def steps(self) -> int:
        """Steps of one round."""
        return len(self.train) // self.params.batch_size

    def network(self) -> CVAE:
        return build(replace(PRESETS[self.preset], init=self.init), 0)

    def rate(self, step: int) -> float:
        return schedule.learning_rate(step, self.steps * self.rounds, self.params.learning_rate, self.params.warmup)

    def loss(self, network: CVAE, images: Tensor, labels: Tensor) -> Tensor:
        noise = torch.randn(len(labels), network.latent_size, device=labels.device)
        return objective.loss(objective.terms(network, images, labels, noise), self.aim.kl_weight)

    def elbo(self, network: CVAE) -> float:
        """On validation, nats per image."""
        return validate(network.to(self.device).eval(), self.validation, labelled(self.aim.pixels))["elbo"]


Contender = Callable[[Setting, CVAE], Iterator[float]]


def ours(setting: Setting, network: CVAE) -> Iterator[float]:
    """This project's own fit(): a round is an epoch."""
    run = train.start(network, setting.params, setting.device)
    for record in train.fit(run, setting.train, setting.validation[:10], setting.params, setting.aim):
        yield record.figures["time/seconds"]


def dataloader(setting: Setting, network: CVAE, workers: int = 0) -> Iterator[float]:
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    with tempfile.TemporaryDirectory() as folder:
        _as_published(Path(folder) / "MNIST" / "raw", setting.train)
        images = MNIST(folder, train=True, transform=ToTensor())
    loader: DataLoader[Any] = DataLoader(
        images, setting.params.batch_size, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    network, step = network.to(setting.device).train(), 0
    optimizer = torch.optim.Adam(network.parameters(), lr=setting.params.learning_rate)
    for _ in range(setting.rounds):
        began, total = time.perf_counter(), 0.0
        for pictures, labels in loader:
            optimizer.param_groups[0]["lr"] = setting.rate(step)
            optimizer.zero_grad()
            loss = setting.loss(network, pictures.to(setting.device), labels.to(setting.device))
            loss.backward()
            optimizer.step()
            total += loss.item()
            step += 1
        yield time.perf_counter() - began


def dataloader_2_workers(setting: Setting, network: CVAE) -> Iterator[float]:
    yield from dataloader(setting, network, workers=2)


def lightning(setting: Setting, network: CVAE) -> Iterator[float]:
    import lightning as pl

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.steps = 0

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            optimizer.param_groups[0]["lr"] = setting.rate(self.steps)
            self.steps += 1
            return setting.loss(self.network, *batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

    class Clock(pl.Callback):  # type: ignore[misc]
        def on_train_epoch_start(self, *_: Any) -> None:
            self.began = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            wait(setting.device)
            self.seconds = time.perf_counter() - self.began

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rows = TensorDataset(to_unit(setting.train.images), setting.train.labels)
    loader = DataLoader(rows, setting.params.batch_size, shuffle=True, drop_last=True)
    network.to(setting.device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=setting.params.learning_rate)
    module, clock = Module(), Clock()
    for _ in range(setting.rounds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for more workers
            trainer = pl.Trainer(
                accelerator="gpu" if setting.device.type == "cuda" else "cpu", devices=1, max_epochs=1, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[clock],
            )  # fmt: skip
            trainer.fit(module, loader)
        yield clock.seconds


def pythae(setting: Setting, network: CVAE) -> Iterator[float]:
    """Trains a network of its own. `network` only gives the sizes, and does not change."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    sizes, latent = network.architecture, network.latent_size

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(784, sizes.encoder_hidden)
            self.mu = nn.Linear(sizes.encoder_hidden[-1], latent)
            self.log_var = nn.Linear(sizes.encoder_hidden[-1], latent)

        def forward(self, images: Tensor) -> Any:
            hidden = self.body(images.flatten(1))
            return ModelOutput(embedding=self.mu(hidden), log_covariance=self.log_var(hidden))

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(latent, sizes.decoder_hidden)
            self.pixels = nn.Linear(sizes.decoder_hidden[-1], 784)

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.pixels(self.body(z)).sigmoid().view(-1, 1, 28, 28))

    class Clock(TrainingCallback):  # type: ignore[misc]
        def on_train_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter()

        def on_train_step_end(self, *_: Any, **__: Any) -> None:
            wait(setting.device)
            self.seconds = time.perf_counter() - self.began

    rows = BaseDataset(to_unit(setting.train.images).cpu(), setting.train.labels.cpu())
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=latent, reconstruction_loss="bce")
    model, clock = VAE(config, encoder=Encoder(), decoder=Decoder()), Clock()
    for _ in range(setting.rounds):
        bar = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stderr(bar):
            warnings.simplefilter("ignore")
            training = BaseTrainerConfig(
                output_dir=folder, num_epochs=1, per_device_train_batch_size=setting.params.batch_size,
                learning_rate=setting.params.learning_rate, no_cuda=setting.device.type != "cuda",
            )  # fmt: skip
            logging.disable(logging.WARNING)  # each of its modules sets its own level
            BaseTrainer(model, train_dataset=rows, training_config=training, callbacks=[clock]).train()
            logging.disable(logging.NOTSET)
        yield clock.seconds


CONTENDERS: dict[str, Contender] = {
    "dataloader": dataloader,
    "dataloader_2_workers": dataloader_2_workers,
    "lightning": lightning,
    "pythae": pythae,
    "ours": ours,
}
UNCONDITIONAL = ("pythae",)  # without a label, so its elbo is not compared


def in_own_process(name: str, setting: Setting, network: CVAE) -> Generator[float, None, None]:
    """Runs a contender's rounds in its own process, without the settings that our package makes for its process.

    The process waits between rounds. After each round, `network` holds what it has learned.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, name, setting))
    with without_our_environment():
        process.start()
    there.close()  # so that reading ends when the process ends
    try:
        for _ in range(setting.rounds):
            here.send("next")
            seconds, weights = here.recv()
            network.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()})
            yield seconds
    finally:
        here.close()
        process.join()


@contextlib.contextmanager
def without_our_environment() -> Iterator[None]:
    """Keeps the variable that `pipeline` sets for its process from child processes. A value of the user stays."""
    ours = os.environ.pop(SPINNING, None) if os.environ.get(SPINNING) == SPINS else None
    try:
        yield
    finally:
        if ours is not None:
            os.environ[SPINNING] = ours


def _serve(line: Connection, name: str, setting: Setting) -> None:
    network = setting.network()
    rounds = CONTENDERS[name](setting, network)
    with contextlib.suppress(EOFError, BrokenPipeError):  # the parent has closed the pipe
        while line.recv():
            seconds = next(rounds)
            line.send((seconds, {key: tensor.numpy() for key, tensor in network.state_dict().items()}))


def _as_published(folder: Path, split: Split) -> None:
    """Writes the IDX files that torchvision's MNIST reads. It also looks for a test split, which has no rows here."""
    folder.mkdir(parents=True)
    for rows, names in ((split, FILES["train"]), (split[:0], FILES["test"])):
        for tensor, name in zip((rows.images.squeeze(1), rows.labels.to(torch.uint8)), names, strict=True):
            header = struct.pack(f">HBB{tensor.ndim}I", 0, 8, tensor.ndim, *tensor.shape)
            (folder / name).write_bytes(header + tensor.cpu().numpy().tobytes())
