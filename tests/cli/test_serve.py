"""What the packaged completer answers and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from pipeline.base.errors import UserError
from pipeline.cli import serve
from pipeline.completion import model as completion
from pipeline.stages.saved import save_completer

HALF = np.zeros((2, 28, 28), np.float32)
HALF[0, 20, 4:20] = 0.9
HALF[1, 16:, 10] = 0.7
HALF[:, :14] = -1


@pytest.fixture
def completer(tmp_path: Path) -> serve.Completer:
    save_completer(tmp_path / "completer.safetensors", completion.build(3, 16, 0))
    served = serve._load_pyfunc(str(tmp_path / "completer.safetensors")).model
    assert isinstance(served, serve.Completer)
    return served


def test_only_hidden_pixels_are_completed_by_seed_and_digit(completer: serve.Completer) -> None:
    found = completer.predict(HALF, {"count": 5})
    assert found.shape == (2, 5, 28, 28)
    assert 0 <= found.min() <= found.max() <= 1
    seen = (HALF[:, None, 14:] >= 0.5).astype(np.float32)
    assert np.array_equal(found[:, :, 14:], np.broadcast_to(seen, (2, 5, 14, 28)))
    assert np.array_equal(found[1:], completer.predict(HALF[1:], {"count": 5}))
    for other in ({"seed": 1}, {"digit": 3}):
        assert not np.array_equal(found, completer.predict(HALF, {"count": 5} | other))
    assert completer.predict(HALF[:0]).shape == (0, 8, 28, 28)


@pytest.mark.parametrize(
    ("pictures", "params", "reason"),
    [
        (HALF, {"count": 10**9}, "count must be a whole number from 1 to 1000"),
        (HALF, {"count": "many"}, "count must be a whole number"),
        (HALF, {"count": None}, "count must be a whole number"),
        (HALF, {"count": 3.5}, "count must be a whole number"),
        (np.repeat(HALF, 20, 0), {"count": 1000}, "10,000 completions in all, not 40,000"),
        (HALF, {"digit": 10}, "digit \\(−1: any\\) must be a whole number from -1 to 9, not 10"),
        (HALF, {"seed": 0.5}, "seed must be"),
        (HALF[:, :20], {}, "must be \\(N, 28, 28\\), not \\(2, 20, 28\\)"),
        (HALF * 255, {}, "from 0 to 1, or −1 where it is hidden"),
        (np.full_like(HALF, np.nan), {}, "from 0 to 1"),
        (np.full_like(HALF, -1), {}, "needs hidden pixels"),
        (np.zeros_like(HALF), {}, "needs hidden pixels"),
    ],
)
def test_a_bad_request_is_refused(
    completer: serve.Completer, pictures: np.ndarray, params: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        completer.predict(pictures, params)
    with pytest.raises(MlflowException, match=reason) as caught:  # to which the server adds no stack trace
        serve.Served(completer).predict(pictures, params)
    assert caught.value.error_code == "BAD_REQUEST"
