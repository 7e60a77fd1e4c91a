"""What the terminal shows."""

from unittest.mock import Mock

import pytest

from pipeline.base import console
from pipeline.base.errors import UserError


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, ""),
        (UserError("no data: run x"), 2, "error: no data: run x\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted: complete results are kept\n"),
    ],
)
def test_a_program_ends_with_one_line_and_the_status_of_its_error(
    error: BaseException | None, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        console.run(Mock(side_effect=error))
    assert (end.value.code, capsys.readouterr().err) == (status, said)


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        console.run(Mock(side_effect=ZeroDivisionError))


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.1235"), (100352.0, "100,352"), (12, "12"), (True, "True"), ("–", "–")]
)
def test_a_number_has_four_significant_digits(value: object, text: str) -> None:
    assert console.number(value) == text


def test_a_wide_table_breaks_its_headings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = ("kl_weight", "learning_rate", "frechet", "class_accuracy", "diversity")
    console.table("Study", ("trial", "state", *names), [("12 ★", "complete", 0.2, 0.003, 4.551, 0.9855, 0.9071)])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert all(word in out for word in ("learning_", "12 ★", "complete", "0.9855", "4.551"))
    console.table("Fit", ("β", "active_units"), [("0.2", 15)])
    assert "active_units" in capsys.readouterr().out


def test_without_a_terminal_a_bar_prints_a_line_per_step(capsys: pytest.CaptureFixture[str]) -> None:
    with console.bar("train", 2) as bar, console.transfer() as progress:
        bar(1, "loss 79.3")
        bar(2, "")
        progress("file", 1, None)
    assert capsys.readouterr().out == "train 1/2  loss 79.3\ntrain 2/2\n"


def test_a_table_that_is_still_too_wide_goes_on_below(
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
    assert len([line for line in out.splitlines() if line.strip().startswith("1,000")]) == out.count("trial") > 1
