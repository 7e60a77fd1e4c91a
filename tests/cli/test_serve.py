"""What the packaged completer answers and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

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
    model = completion.build(3, 16, 0)
    save_completer(tmp_path / "completer.safetensors", model)
    served = serve._load_pyfunc(str(tmp_path / "completer.safetensors"))
    assert isinstance(served, serve.Completer)
    return served


def test_only_hidden_pixels_are_completed(completer: serve.Completer) -> None:
    found = completer.predict(HALF, {"count": 5})
    assert found.shape == (2, 5, 28, 28)
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1
    seen = (HALF[:, None, 14:] >= 0.5).astype(np.float32)
    assert np.array_equal(found[:, :, 14:], np.broadcast_to(seen, (2, 5, 14, 28)))
    assert not np.array_equal(found[:, 0, :14], found[:, 1, :14])
    assert completer.predict(HALF[:0]).shape == (0, 8, 28, 28)


def test_a_seed_repeats_and_a_digit_changes_the_completions(completer: serve.Completer) -> None:
    usual = completer.predict(HALF)
    assert np.array_equal(usual, completer.predict(HALF, {"count": 8, "digit": -1, "seed": 0}))
    assert np.array_equal(usual[1:], completer.predict(HALF[1:]))
    assert not np.array_equal(usual, completer.predict(HALF, {"seed": 1}))
    assert not np.array_equal(usual, completer.predict(HALF, {"digit": 3}))


@pytest.mark.parametrize(
    ("pictures", "params", "reason"),
    [
        (HALF, {"count": 0}, "count must be from 1 to 1,000, not 0"),
        (HALF, {"count": 10**9}, "count must be"),
        (HALF, {"digit": 10}, "digit must be from 0 to 9, or −1 for any, not 10"),
        (HALF, {"seed": -1}, "seed must be"),
        (HALF[:, :20], {}, "must be \\(N, 28, 28\\), not \\(2, 20, 28\\)"),
        (HALF * 255, {}, "from 0 to 1, or −1 where it is hidden"),
        (np.full_like(HALF, np.nan), {}, "from 0 to 1"),
        (np.full_like(HALF, -1), {}, "needs hidden pixels"),
        (np.zeros_like(HALF), {}, "needs hidden pixels"),
    ],
)
def test_a_bad_request_is_refused(
    completer: serve.Completer, pictures: np.ndarray, params: dict[str, int], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        completer.predict(pictures, params)
