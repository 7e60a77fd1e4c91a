"""What the terminal shows."""

import atexit
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from unittest.mock import Mock

import pytest
from imports import ROOT
from waiting import until

from pipeline.base import console
from pipeline.base.errors import UserError


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `console.run` changes in its process, pytest's here, is put back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(atexit, "register", Mock())
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


INTERRUPTED = "\ninterrupted: complete results are kept\n"
FULL = "No space left on device): free some space, then run the same command again; what was complete is kept\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, ""),
        (UserError("no data: run x"), 2, "error: no data: run x\n"),
        (KeyboardInterrupt(), 130, INTERRUPTED),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "models/x"), 2, f"error: models/x can't be written ({FULL}"),
    ],
)
def test_a_program_ends_with_one_line_and_the_status_of_its_error(
    error: BaseException | None, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        console.run(Mock(side_effect=error))
    assert (end.value.code, capsys.readouterr().err) == (status, said)


@pytest.mark.parametrize("defect", [ZeroDivisionError, ConnectionRefusedError])
def test_a_defect_keeps_its_traceback(defect: type[Exception]) -> None:
    with pytest.raises(defect):
        console.run(Mock(side_effect=defect))


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.1235"), (100352.0, "100,352"), (12, "12"), (True, "True"), ("–", "–")]
)
def test_a_number_has_four_significant_digits(value: object, text: str) -> None:
    assert console.number(value) == text


def test_the_best_rows_are_coloured_where_colours_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console.table("Study", ("trial", "frechet"), [("0", 2.5), ("1 ★", 1.5)], best=[1])
    worse, better = (line for line in capsys.readouterr().out.splitlines() if ".5" in line)
    assert "\x1b[1;32m" in better
    assert "\x1b[1;32m" not in worse


def test_without_a_terminal_a_bar_says_each_thing_once(capsys: pytest.CaptureFixture[str]) -> None:
    with console.bar("train", 2) as bar:
        bar(1, "loss 79.3")
        bar(2, "loss 79.3")  # which says nothing new
        bar(2, "")
        bar(2, "", "which a log leaves out")
    assert capsys.readouterr().out == "train 1/2  loss 79.3\ntrain 2/2\n"


def test_a_wide_table_breaks_its_headings_and_goes_on_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    names = [f"figure_{number}" for number in range(8)]
    rows = [(trial, *(trial + number / 7 for number in range(8))) for trial in (1000, 1001)]
    console.table("Study", ("trial", *names), rows, note="★ best")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 40
    figures = [console.number(cell) for row in rows for cell in row[1:]]
    assert [figure for figure in figures if figure not in out] == []
    lines = [line for line in out.splitlines() if line.strip().startswith("1,000")]
    assert len(lines) == out.count("trial") == 3  # with whole headings it would be 4


PROGRAM = """
import atexit, signal, time
from pathlib import Path
from pipeline.base import console

def main():
    {deed}
    time.sleep(600)

console.run(main)
"""


def test_an_interrupted_program_says_nothing_of_its_exit_handlers(tmp_path: Path) -> None:
    program = PROGRAM.format(deed="atexit.register(lambda: 1 / 0); signal.raise_signal(signal.SIGTERM)")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stderr) == (143, INTERRUPTED)


def test_a_signal_that_comes_where_nothing_can_be_raised_comes_again() -> None:
    """Such as in a destructor: Python drops what the handler raises there."""
    came = threading.Event()

    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, lambda *_: came.set())
        console._terminated(number, frame)

    def main() -> None:
        signal.signal(signal.SIGTERM, handle)
        Dropped()
        until(came.is_set)  # a wait for the event alone would hold the handler up

    with pytest.raises(SystemExit, match=r"^0$"):
        console.run(main)


def test_a_signal_that_a_library_makes_another_error_of_ends_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """numpy's comparisons of structured arrays do so."""

    def main() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise TypeError("Cannot compare structured arrays") from None

    with pytest.raises(SystemExit, match=r"^143$"):
        console.run(main)
    assert capsys.readouterr().err == INTERRUPTED


def test_a_signal_that_a_library_loses_ends_the_program_at_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        with console.bar("train", 2) as bar:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            bar(1, "one")

    with pytest.raises(SystemExit, match=r"^143$"):
        console.run(main)
    assert capsys.readouterr().err == INTERRUPTED


def test_a_stage_of_a_dvc_that_was_killed_ends(tmp_path: Path) -> None:
    """Its outputs would otherwise come in the way of the next `dvc repro`."""
    watches = PROGRAM.format(deed="""Path("watches").touch()""")  # it watches before it begins
    stage = f"'{sys.executable}' -c '{watches}' 2>said & wait"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_STAGE": "train"}
    dvc = subprocess.Popen(["sh", "-c", stage], cwd=tmp_path, env=environment)
    until((tmp_path / "watches").exists)
    dvc.kill()
    dvc.wait()
    until(lambda: "interrupted" in (tmp_path / "said").read_text())


def test_no_line_shows_a_password(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://user:geheim%201%2F%40@host/db")
    forms = [f"can't reach //user:{form}@host" for form in ("geheim 1/@", "geheim%201/%40", "geheim%201%2F%40")]
    for form in forms:
        console.warn(form)
    with pytest.raises(SystemExit):
        console.run(Mock(side_effect=UserError(", ".join(forms))))
    assert capsys.readouterr().err.count("//user:***@host") == 6
