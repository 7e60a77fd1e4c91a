"""The search on a Dask cluster: this process asks and tells, and the cluster's workers train the populations.

Only this process uses the databases. A population's result follows from its trials and its seed alone. So where a
worker dies, another one trains the same again, and nothing is told twice.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pipeline.base.device import pick_device
from pipeline.base.errors import UserError
from pipeline.data.splits import Split
from pipeline.measure.evaluator import Evaluator
from pipeline.measure.judge import Judges
from pipeline.model.density import Density
from pipeline.study.queue import Study
from pipeline.study.search import WAIT_SECONDS, Began, Event, Round, Trained, batch_size, race, train_together
from pipeline.study.space import Setting

if TYPE_CHECKING:
    from distributed import Client, Future

RESOURCE = "GPU"  # what a worker with a GPU of its own offers: `dask worker --resources GPU=1`
RETRIES = 3  # of a population whose training raised an error. Dask itself retries where a worker died, three times too
CONNECT_SECONDS = 30
GONE = "the Dask scheduler went away: start it again; the same command then continues"


def search(study: Study, train: Split, evaluator: Evaluator, address: str) -> Generator[Event, None, None]:
    """Runs the study on the cluster whose scheduler is at `address`, and yields what happens, as `search.search` does.

    train, evaluator: on the CPU; each worker gets a copy, also one that comes later. Raises UserError where there is no
    cluster, or where a population ends one worker after the other.
    """
    setting, name = study.setting, f"cvae {study.name}"
    races: dict[Future[list[Trained]], tuple[Iterator[Event | Round], Round]] = {}
    with closing(_connect(address)) as client, _one_line(), study.at_work():
        _send(client, name, train, evaluator)

        def advance(going: Iterator[Event | Round]) -> Iterator[Event]:
            for step in going:
                if isinstance(step, Round):
                    work = (_train, name, setting, step.trials, step.seed)
                    races[client.submit(*work, pure=False, retries=RETRIES, resources=taken)] = going, step
                    return
                yield step

        size = 0
        while study.done() < setting.tune.trials:
            devices, taken = _offered(client)
            while len(races) < devices:
                size = size or client.submit(_fitting, setting, devices, resources=taken).result()
                if not (batch := study.ask(size)):
                    break
                yield from map(Began, batch)
                yield from advance(race(study, batch))
            for future in _ended(list(races)):
                going, order = races.pop(future)
                order.trained = _result(future, order)
                yield from advance(going)
        client.unregister_worker_plugin(name)


def _connect(address: str) -> "Client":
    try:
        import distributed
    except ModuleNotFoundError:
        raise UserError("Dask is not installed: pip install '.[dask]'") from None
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"no Dask scheduler answers at {address} ({reason}): start `dask scheduler` there") from None
    try:
        client.wait_for_workers(1, CONNECT_SECONDS)
    except TimeoutError:
        client.close()
        raise UserError(f"the Dask scheduler at {address} has no worker: start `dask worker {address}`") from None
    return client


@contextmanager
def _one_line() -> Iterator[None]:
    """Turns what Dask raises where its scheduler has gone into a UserError."""
    from distributed import CancelledError
    from distributed.client import ClosedClientError

    try:
        yield
    except (CancelledError, ClosedClientError):
        raise UserError(GONE) from None


def _send(client: "Client", name: str, train: Split, evaluator: Evaluator) -> None:
    """Gives the images and the judges to all workers, and to those that will come."""
    from distributed import WorkerPlugin

    class Bench(WorkerPlugin):
        def __init__(self) -> None:
            self.train, self.evaluator = train, evaluator

    try:
        client.register_plugin(Bench(), name=name)
    except ImportError as error:
        raise UserError(
            f"a Dask worker lacks what this process has ({error}): install the same version there"
        ) from None


def _offered(client: "Client") -> tuple[int, dict[str, float]]:
    """How many populations train at once, and what of a worker each takes: a GPU, or where none is offered a thread."""
    info = client.scheduler_info(n_workers=-1)
    if "workers" not in info:  # the client has looked for the scheduler once more and closed itself
        raise UserError(GONE)
    workers = info["workers"].values()
    devices = sum(worker["resources"].get(RESOURCE, 0) for worker in workers)
    return (int(devices), {RESOURCE: 1}) if devices else (sum(worker["nthreads"] for worker in workers), {})


def _fitting(setting: Setting, devices: int) -> int:
    """On a worker: how many trials of a population."""
    return batch_size(setting, pick_device(setting.train.device), devices)


def _train(name: str, setting: Setting, trials: Sequence[dict[str, Any]], seed: int) -> list[Trained]:
    """On a worker: what `train_together` yields, on the CPU."""
    from distributed import get_worker

    bench: Any = get_worker().plugins[name]
    device = pick_device(setting.train.device)
    if bench.evaluator.split.labels.device != device:
        bench.train, bench.evaluator = bench.train.to(device), _moved(bench.evaluator, device)
    return [_home(found) for found in train_together(setting, trials, seed, bench.train, bench.evaluator)]


def _moved(evaluator: Evaluator, device: torch.device) -> Evaluator:
    judges = evaluator.judges and Judges(*(judge.to(device) for judge in evaluator.judges))
    return replace(evaluator, judges=judges, split=evaluator.split.to(device), train=evaluator.train.to(device))


def _home(found: Trained) -> Trained:
    if found.fitted is None:
        return found
    density = Density(*(tensor.cpu() for tensor in found.fitted.density))
    fitted = found.fitted._replace(model=found.fitted.model.cpu(), density=density)
    return found._replace(fitted=fitted)


def _ended(futures: "list[Future[list[Trained]]]") -> "list[Future[list[Trained]]]":
    """Those that have ended, after waiting for the first a while."""
    from distributed import CancelledError, wait

    if not futures:  # other processes train the last trials
        time.sleep(WAIT_SECONDS)
        return []
    with suppress(TimeoutError, CancelledError):
        wait(futures, timeout=WAIT_SECONDS, return_when="FIRST_COMPLETED")
    return [future for future in futures if future.done()]


def _result(future: "Future[list[Trained]]", order: Round) -> list[Trained]:
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker:
        weights = ", ".join(f"{trial['kl_weight']:.3g}" for trial in order.trials)
        raise UserError(
            f"the population of KL weights {weights} ended one Dask worker after the other: give workers more memory, "
            "or set a smaller tune.population"
        ) from None
