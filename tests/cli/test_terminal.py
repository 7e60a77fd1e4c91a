"""The commands on a terminal of 80 columns: nothing wider, no word broken, colours, and terminals that know no β."""

import sys
from pathlib import Path

import pytest
from imports import ROOT
from terminals import cvae_on_terminal, on_terminal


def test_the_report_fits_80_columns_breaks_no_word_and_spells_what_a_terminal_lacks(reported: Path) -> None:
    wide, narrow, plain = (
        cvae_on_terminal(reported, "report", columns, PYTHONIOENCODING=encoding)
        for columns, encoding in ((200, "utf-8"), (80, "utf-8"), (80, "ascii"))
    )
    assert max(narrow.width, plain.width) <= 80 < wide.width
    words = {word for word in narrow.text.split() if "─" not in word}
    assert words == {word for word in wide.text.split() if "─" not in word}
    assert "\x1b[31mCOLLAPSED" in narrow.written
    assert "any β from 0.1 to 0.25" in narrow.text
    assert "any beta from 0.1 to 0.25" in plain.text
    assert wide.status == narrow.status == plain.status == 0


def test_help_and_errors_are_written_in_any_encoding(tmp_path: Path) -> None:
    assert "to beta, or back" in cvae_on_terminal(tmp_path, "weight --help", PYTHONIOENCODING="ascii").text
    screen = cvae_on_terminal(tmp_path, "weight --article β", PYTHONIOENCODING="ascii", LC_ALL="C.UTF-8")
    assert screen.status == 2
    assert screen.written.startswith("\x1b[31merror:\x1b[0m ")
    assert screen.text.count("\n") == 1


BOTH = """
import sys
from pipeline.cli.main import main
for words in ("params", "sample 8 --count 1 --out ö.png"):
    sys.argv = ["cvae", *words.split()]
    try:
        main()
    except SystemExit as end:
        print("status", end.code)
"""


@pytest.mark.slow
def test_a_locale_without_greek_reads_and_writes_all_the_same(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")  # and PYTHONUTF8 is not handed on
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")  # so that it is ASCII, also for files
    (project / "both.py").write_text(BOTH, encoding="utf-8")
    screen = on_terminal(project, [sys.executable, "both.py"])
    assert screen.lines[:2] == ["params.yaml: every value is allowed", "status 0"]
    assert screen.lines[-2] == "status 0"
    assert (project / "ö.png").exists()


def test_another_pipeline_on_pythonpath_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("raise SystemExit('another project')\n", encoding="utf-8")
    # As the installed script starts: the folder of the editable project comes after PYTHONPATH.
    script = f"import sys; sys.path.append({str(ROOT)!r}); import cvae; sys.argv = ['cvae', '--version']; cvae.main()"
    screen = on_terminal(tmp_path, [sys.executable, "-c", script], PYTHONPATH=str(tmp_path))
    assert (screen.status, screen.text[:7]) == (0, "cvae 0.")
