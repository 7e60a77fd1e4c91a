"""The commands on a terminal of 80 columns: nothing wider, no word broken, colours, and terminals that know no β."""

import sys
from pathlib import Path

import pytest
from imports import ROOT
from terminals import cvae_on_terminal, on_terminal


def test_the_report_fits_80_columns_and_breaks_no_word(reported: Path) -> None:
    wide, narrow = (cvae_on_terminal(reported, "report", columns) for columns in (200, 80))
    assert wide.status == narrow.status == 0
    assert narrow.width <= 80 < wide.width
    lines = {word for word in narrow.text.split() if "─" not in word}
    assert lines == {word for word in wide.text.split() if "─" not in word}
    assert "\x1b[31mCOLLAPSED" in narrow.written


def test_no_color_is_respected(reported: Path) -> None:
    screen = cvae_on_terminal(reported, "report", NO_COLOR="1")
    assert "COLLAPSED" in screen.text
    assert "\x1b[3" not in screen.written


@pytest.mark.parametrize(("encoding", "spelling"), [("utf-8", "β"), ("latin-1", "beta"), ("ascii", "beta")])
def test_a_terminal_without_greek_reads_beta(reported: Path, encoding: str, spelling: str) -> None:
    screen = cvae_on_terminal(reported, "report", PYTHONIOENCODING=encoding)
    assert (screen.status, screen.width <= 80) == (0, True)
    assert f"any {spelling} from 0.1 to 0.25 does best" in screen.text
    screen = cvae_on_terminal(reported, "weight --help", PYTHONIOENCODING=encoding)
    assert screen.status == 0
    assert f"to {spelling}, or back" in screen.text


def test_a_locale_without_greek_reads_and_writes_all_the_same(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")  # and PYTHONUTF8 is not handed on
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")  # so that it is ASCII, also for files
    screen = cvae_on_terminal(project, "params")
    assert (screen.status, screen.text.strip()) == (0, "params.yaml: every value is allowed")
    screen = cvae_on_terminal(project, "sample 8 --count 1 --out ö.png")
    assert (screen.status, (project / "ö.png").exists()) == (0, True)


def test_errors_are_red_and_in_one_line_in_any_encoding(reported: Path) -> None:
    screen = cvae_on_terminal(reported, "weight --article β", PYTHONIOENCODING="ascii", LC_ALL="C.UTF-8")
    assert screen.status == 2
    assert screen.written.startswith("\x1b[31merror:\x1b[0m ")
    assert screen.text.count("\n") == 1


@pytest.mark.parametrize("words", ["--help", "sample --help", "complete --help"])
def test_help_fits_80_columns(tmp_path: Path, words: str) -> None:
    screen = cvae_on_terminal(tmp_path, words)
    assert screen.status == 0
    assert screen.width <= 80


@pytest.mark.slow
def test_a_program_says_how_long_it_took(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    screen = on_terminal(tmp_path, [sys.executable, "-m", "pipeline.stages.check"])
    assert (screen.status, screen.lines[-2].split()[:2]) == (0, ["check", "took"])
    assert screen.lines[-2].endswith(" s")


def test_another_pipeline_on_pythonpath_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("raise SystemExit('another project')\n", encoding="utf-8")
    # As the installed script starts: the folder of the editable project comes after PYTHONPATH.
    script = f"import sys; sys.path.append({str(ROOT)!r}); import cvae; sys.argv = ['cvae', '--version']; cvae.main()"
    screen = on_terminal(tmp_path, [sys.executable, "-c", script], PYTHONPATH=str(tmp_path))
    assert (screen.status, screen.text[:7]) == (0, "cvae 0.")
