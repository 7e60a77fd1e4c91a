"""The commands on a terminal of 80 columns: nothing wider, no word broken, colours, and terminals that know no β."""

import sys
from pathlib import Path

import pytest
from imports import ROOT
from terminals import cvae_on_terminal, on_terminal

from pipeline.base.files import write_json
from pipeline.base.paths import BEST, DOCTOR, METRICS, VALIDATION


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """A folder with the reports of an evaluation."""
    of_samples = {"class_accuracy": 0.98765, "diversity": 0.9, "frechet": 2.36, "coverage": 0.94}
    fit = {"reconstruction": 68.7, "kl": 35.41, "elbo": -104.1, "nll": 99.37, "active_units": 15, "collapsed": True}
    protocol = {"split": "test", "images": 10_000, "kl_weight": 0.2, "pixels": "grey", "nll_draws": 500}
    figures = fit | dict.fromkeys(("prior", "fitted", "real"), of_samples) | {"protocol": protocol}
    several = protocol | {"split": "validation", "sample_sets": 3}
    deviation = dict.fromkeys(("prior", "fitted", "real"), dict.fromkeys(of_samples, 0.0123))
    write_json(tmp_path / VALIDATION, figures | {"protocol": several, "standard_deviation": deviation})
    write_json(tmp_path / METRICS, figures)
    write_json(tmp_path / DOCTOR, {"verdict": "prior_hole"})
    write_json(tmp_path / BEST, {"interval": [0.1, 0.25], "values": {"validation/fitted/frechet": 4.551}})
    return tmp_path


def words_of(text: str) -> list[str]:
    return text.split()


def test_the_report_fits_80_columns_and_breaks_no_word(evaluated: Path) -> None:
    wide, narrow = (cvae_on_terminal(evaluated, "report", columns) for columns in (200, 80))
    assert wide.status == narrow.status == 0
    assert narrow.width <= 80 < wide.width
    lines = {word for word in words_of(narrow.text) if "─" not in word}
    assert lines == {word for word in words_of(wide.text) if "─" not in word}
    assert "\x1b[31mCOLLAPSED" in narrow.written


def test_no_color_is_respected(evaluated: Path) -> None:
    screen = cvae_on_terminal(evaluated, "report", NO_COLOR="1")
    assert "COLLAPSED" in screen.text
    assert "\x1b[3" not in screen.written


@pytest.mark.parametrize(("encoding", "spelling"), [("utf-8", "β"), ("latin-1", "beta"), ("ascii", "beta")])
def test_a_terminal_without_greek_reads_beta(evaluated: Path, encoding: str, spelling: str) -> None:
    screen = cvae_on_terminal(evaluated, "report", PYTHONIOENCODING=encoding)
    assert (screen.status, screen.width <= 80) == (0, True)
    assert f"any {spelling} from 0.1 to 0.25 does best" in screen.text
    screen = cvae_on_terminal(evaluated, "weight --help", PYTHONIOENCODING=encoding)
    assert screen.status == 0
    assert f"to {spelling}, or back" in screen.text


def test_errors_are_red_and_in_one_line_in_any_encoding(evaluated: Path) -> None:
    screen = cvae_on_terminal(evaluated, "weight --article β", PYTHONIOENCODING="ascii", LC_ALL="C.UTF-8")
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
