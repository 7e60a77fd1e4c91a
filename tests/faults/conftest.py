"""A small project, and the table of `make faults`."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import drills
import pytest
from servers import Tracking


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, zygote: drills.Zygote, database: Path) -> Path:
    """A project that has not trained yet."""
    folder = drills.make_project(tmp_path_factory.mktemp("faults") / "project", database, *drills.digits())
    for stage in ("prepare", "spectrum", "judge"):
        ended = zygote.run(folder, stage)
        assert ended.status == 0, ended.said
    return folder


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "project"))


@pytest.fixture(scope="session")
def trained(prepared: Path, zygote: drills.Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose training went undisturbed."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("trained") / "project")
    ended = zygote.run(folder, "train")
    assert ended.status == 0, ended.said
    return Path(folder)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, database: Path) -> Iterator[Tracking]:
    """A tracking server for all tests, not started yet. Its database is mlflow.db in its folder."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(database, folder / "mlflow.db")
    made = Tracking(folder)
    yield made
    made.stop()


@pytest.fixture
def tracking(running: Tracking) -> Tracking:
    """The same, started, also after a test that killed it."""
    if running.process is None:
        running.start()
    return running


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The whole run says how many faults of each kind there were: what docs/trust.md holds."""
    if "FAULTS" not in os.environ:
        return
    good, bad = Counter[str](), Counter[str]()
    for outcome, counted in (("passed", good), ("failed", bad), ("error", bad)):
        for report in terminalreporter.getreports(outcome):
            known: dict[str, object] = dict(report.user_properties)
            test = report.nodeid.rpartition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")
            counted[str(known.get("fault", test))] += int(str(known.get("count", 1)))
    terminalreporter.section("faults")
    terminalreporter.line("| fault | count | failed |\n|---|---|---|")
    for name in sorted(good | bad):
        terminalreporter.line(f"| {name} | {good[name] + bad[name]:,} | {bad[name]} |")
