"""`mlflow models serve` of the champion: a real server, what it answers, and what it refuses."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaged import IMAGE, save_three
from ports import free_port
from stores import forget

from pipeline.tracking import runs, server
from pipeline.tracking.registry import crown

pytestmark = pytest.mark.slow


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]


Ask = Callable[..., Answer]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Sends a body to the server of a champion that has a curve and a completer beside it."""
    folder, port = tmp_path_factory.mktemp("serving"), free_port()
    save_three(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patched.chdir(folder)
        with runs.start("train", "e") as run:
            run.model(folder / "cvae.safetensors")
        beside = [folder / "curve.safetensors", folder / "completer.safetensors"]
        assert crown(run.run_id, beside) == "models:/cvae-mnist@champion is now version 1"
        forget()
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/cvae-mnist@champion"]
        command += ["--env-manager", "local", "--port", str(port)]
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def send(body: Any, kind: str = "application/json") -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        address, headers = f"http://127.0.0.1:{port}/invocations", {"Content-Type": kind}
        try:
            with opener.open(urllib.request.Request(address, data, headers)) as answer:
                return Answer(answer.status, json.load(answer))
        except urllib.error.HTTPError as error:
            return Answer(error.code, json.loads(error.read()))

    try:
        assert server.is_up(process, f"http://127.0.0.1:{port}"), Path(folder, "log").read_text()
        yield send
    finally:
        server.end(process)


def test_samples_at_weights_and_completions_come_back_as_asked(ask: Ask) -> None:
    completion = {"image": IMAGE.tolist(), "mask": "top", "seed": 1, "count": 3}
    requests = [{"digit": 8, "seed": 1}, {"digit": 8, "seed": 1, "kl_weight": 0.3}, completion,
                completion | {"kl_weight": 2}]  # fmt: skip
    first, again = ask({"inputs": requests}), ask({"inputs": requests})
    assert first.status == 200
    assert first == again
    own, at_weight, completed, by_curve = (np.array(found) for found in first.body["predictions"])
    assert own.shape == at_weight.shape == (28, 28)
    assert not np.array_equal(own, at_weight)
    for found in (completed, by_curve):
        assert found.shape == (3, 28, 28)
        assert (found[:, 14:] >= 0.5).tolist() == [(IMAGE[14:] >= 0.5).tolist()] * 3
    assert not np.array_equal(completed, by_curve)
    table = {"columns": ["digit", "seed"], "data": [[8, 1]]}
    assert ask({"dataframe_split": table}).body["predictions"] == [own.tolist()]
    assert ask({"dataframe_records": [{"digit": 8, "seed": 1}]}) == ask({"instances": [{"digit": 8, "seed": 1}]})


OK = {"image": IMAGE.tolist(), "mask": "top"}
REQUESTS: list[tuple[Any, str]] = [
    ({"digit": 10}, "inputs[0].digit must be less than 10, not 10"),
    ({"digit": 3.5}, "inputs[0].digit must be a valid integer, not 3.5"),
    ({"seed": 1}, "inputs[0].digit is missing: it is needed for samples"),
    ({"digt": 3}, "inputs[0].digt: unknown key; did you mean 'digit'?"),
    ({"digit": 3, "count": 10**9}, "inputs[0].count must be less than or equal to 1000"),
    ({"digit": 3, "sampler": "best"}, "inputs[0].sampler must be 'prior' or 'fitted', not 'best'"),
    ({"digit": 3, "kl_weight": 31}, "kl_weight 31 is not between 0.01 and 30"),
    (OK | {"image": [[255] * 28] * 28}, "inputs[0].image must be 28 rows of 28 numbers from 0 to 1"),
    (OK | {"mask": [[1] * 28] * 28}, "inputs[0].mask must have 1 where a pixel is hidden"),
    (3, "inputs[0] must hold keys with values, not 3"),
]
BODIES: list[tuple[Any, str]] = [
    ({"inputs": [{"digit": 3}] * 100_000}, "at most 100 requests may come at once, not 100,000"),
    (b"[" * 100_000, "the body is nested too deeply"),
    (b'{"inputs": [{"digit": ' + b"[" * 400 + b"]" * 400 + b"}]}", "inputs[0] can't be read"),
    (b"\xff\xfe", "the body is not JSON"),
    (b'{"inputs": [{"digit": 3, "sampler": "\\ud800"}]}', "inputs[0] can't be read"),
    ({"rows": []}, 'the body must be {"inputs": [REQUEST, …]}'),
    ({"dataframe_split": {"columns": ["digit"], "data": [[1, 2]]}}, "dataframe_split needs columns"),
    (b" " * 20_000_000, "the body may have 10,000,000 bytes, not 20,000,000"),
]


def assert_refused(answer: Answer, words: str) -> None:
    assert answer.status == 400
    assert answer.body.keys() == {"error_code", "message"}  # no stack trace
    assert answer.body["message"].startswith(words)
    assert len(answer.body["message"]) <= 300
    assert "\n" not in answer.body["message"]


def test_a_bad_body_is_refused_in_one_sentence(ask: Ask) -> None:
    for body, words in [*BODIES, *(({"inputs": [request]}, words) for request, words in REQUESTS)]:
        assert_refused(ask(body), words)
    assert_refused(ask(b"digit\n3", "text/csv"), "the content type must be application/json, not 'text/csv'")


FIELDS = st.sampled_from(["digit", "kl_weight", "seed", "sampler", "count", "image", "mask", "inputs", "digt"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=4)
ANY = st.recursive(
    LEAVES | st.integers(-2, 12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=8,
)
SQUARES = st.lists(st.lists(st.integers(0, 1), min_size=28, max_size=28), min_size=28, max_size=28)
ONE = st.dictionaries(FIELDS, ANY | SQUARES, max_size=4).map(lambda one: {"inputs": [one]})


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(ONE | ANY | st.fixed_dictionaries({"inputs": ANY}) | st.binary(max_size=50))
def test_any_body_is_answered_or_refused_in_one_sentence(ask: Ask, body: Any) -> None:
    answer = ask(body)
    if answer.status != 200:
        assert_refused(answer, "")
