"""On a team's servers: MLflow and Optuna on PostgreSQL, artifacts and DVC's remote on S3. No password stays behind."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import drills
import pytest
from drills import KEY, LOGIN, PASSWORD, USER, assert_no_password, holds_a_password
from ports import free_port
from postgres import Server
from servers import Tracking, bad, proxy, s3
from waiting import until

from pipeline.base.params import write
from pipeline.cli import main as cli
from pipeline.cli.services import services
from pipeline.tracking import server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning"),  # of DVC
    # MLflow and Optuna leave the connections of a refused database to the garbage collector, which says so.
    pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning"),
]

REMOTE = "[core]\n    no_scm = true\n    remote = team\n['remote \"team\"']\n    url = s3://{bucket}/dvc\n"


@dataclass
class Team:
    """The servers, and the environment that names them. log: what they print."""

    environment: dict[str, Any]
    database: Server
    bucket: Any  # boto3's client
    log: Path

    def url(self, database: str) -> str:
        return self.database.url(database, *LOGIN.split(":"))

    def dump(self) -> bytes:
        """All that the databases hold, and all objects on S3."""
        found = []
        for name in ("team_mlflow", "team_optuna"):
            for (table,) in self.database.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name):
                rows = self.database.query(f'SELECT each::text FROM "{table}" AS each', name)
                found += [str(row).encode() for (row,) in rows]
        found += [self.bucket.get_object(Bucket="team", Key=key)["Body"].read() for key in self.objects()]
        return b"\n".join(found)

    def objects(self) -> list[str]:
        """The names of the objects on S3."""
        return [entry["Key"] for entry in self.bucket.list_objects_v2(Bucket="team").get("Contents", [])]


@pytest.fixture(scope="module")
def team(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    server.query(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")
    for name in ("team_mlflow", "team_optuna"):
        server.query(f"CREATE DATABASE {name} OWNER {USER}")
    with s3("team", KEY) as (keys, bucket), pytest.MonkeyPatch.context() as patch:
        made = Team({}, server, bucket, folder)
        tracking = Tracking(folder, keys | {
            "MLFLOW_BACKEND_STORE_URI": made.url("team_mlflow").replace("postgresql:", "postgresql+psycopg:"),
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://team/mlflow",
        })  # fmt: skip
        patch.setenv("OPTUNA_STORAGE", made.url("team_optuna"))
        tracking.start()
        try:
            with proxy(folder / "proxy.log") as address:
                made.environment = keys | {
                    "MLFLOW_TRACKING_URI": tracking.address.replace("//", f"//{LOGIN}@"),
                    "OPTUNA_STORAGE": address,
                }
                for name, value in made.environment.items():
                    patch.setenv(name, value)
                yield made
        finally:
            tracking.stop()


def test_two_machines_share_a_study_on_servers_and_leave_no_password(
    prepared: Path, zygote: drills.Zygote, team: Team, tmp_path: Path
) -> None:
    query = team.database.query
    workers = "SELECT DISTINCT value_json FROM trial_user_attributes WHERE key = 'worker'"
    folders = [Path(shutil.copytree(prepared, tmp_path / name)) for name in ("one", "other")]
    for folder in folders:
        write({("tune", "trials"): 4}, folder / "params.yaml")
    with ExitStack() as stack:
        studies = [stack.enter_context(zygote.held(folder, "tune", **team.environment)) for folder in folders]
        until(lambda: len(query(workers, "team_optuna")) == 2)
        for study in studies:
            study.gate.touch()
        ended = [study.end() for study in studies]
    for one, folder in zip(ended, folders, strict=True):
        assert one.status == 0, one.said
        if "cvae sync" in one.said:  # the server is slow
            zygote.sync(folder, team.environment["MLFLOW_TRACKING_URI"])
    assert query("SELECT state, count(*) FROM trials GROUP BY state", "team_optuna") == [("COMPLETE", 4)]
    assert query("SELECT name FROM runs WHERE status != 'FINISHED'", "team_mlflow") == []
    assert query("SELECT count(*) FROM runs", "team_mlflow") == [(5,)]
    assert any(key.startswith("mlflow/") and key.endswith(".safetensors") for key in team.objects())
    assert not (folders[0] / "optuna.db").exists()
    assert_no_password(*folders, team.log)
    assert not holds_a_password(team.dump())


def test_the_page_shows_no_password_in_the_list_of_processes(team: Team, tmp_path: Path) -> None:
    port = free_port()
    with (tmp_path / "log").open("w+") as log:
        page = server.start(team.url("team_mlflow"), port, log, None)
        try:
            assert server.is_up(page, f"http://127.0.0.1:{port}")
            lines = [_line(path) for path in Path("/proc").glob("[0-9]*") if _session(path) == page.pid]
        finally:
            server.end(page)
    assert any(b"--no-serve-artifacts" in line for line in lines)
    assert not any(map(holds_a_password, lines))


def _line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # the process has ended
        return b""


def _session(process: Path) -> int:
    try:
        return os.getsid(int(process.name))
    except OSError:
        return 0


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of DVC with a remote on S3, in which we are."""
    from dvc.repo import Repo

    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    (tmp_path / ".dvc/config").write_text(REMOTE.format(bucket="team"))
    return tmp_path


def test_data_goes_to_s3_and_comes_back(team: Team, remote: Path) -> None:
    from dvc.repo import Repo

    (remote / "data.bin").write_bytes(b"images")
    with Repo() as repo:
        repo.add("data.bin")
        assert repo.push() == 1
        shutil.rmtree(remote / ".dvc/cache")
        (remote / "data.bin").unlink()
        repo.pull()
    assert (remote / "data.bin").read_bytes() == b"images"
    assert any(key.startswith("dvc/") for key in team.objects())


@pytest.mark.usefixtures("team", "remote")
def test_the_doctor_finds_nothing_wrong_with_good_servers(capsys: pytest.CaptureFixture[str]) -> None:
    assert services()
    said = capsys.readouterr().out
    assert [line[:3] for line in said.splitlines()] == ["✓ M", "✓ O", "✓ D"]
    assert "artifacts at mlflow-artifacts:/" in said
    assert not holds_a_password(said.encode())


@pytest.mark.usefixtures("remote")
def test_the_doctor_says_in_a_line_what_is_wrong_with_a_server_and_what_to_do(
    team: Team, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    query = team.database.query

    def says(name: str, pattern: str, **environment: str) -> None:
        with monkeypatch.context() as changed:
            for variable, value in environment.items():
                changed.setenv(variable, value)
            assert not services()
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("✗")]
        assert line.startswith(f"✗ {name}: ")
        for words in pattern.split("…"):
            assert words in line
        assert not holds_a_password(line.encode())

    url = team.url("team_optuna")
    wrong = url.replace(LOGIN, f"{USER}:{KEY}")
    says("Optuna", "password authentication failed…: correct user and password in OPTUNA_STORAGE", OPTUNA_STORAGE=wrong)
    says("Optuna", 'database "none" does not exist…: create the database', OPTUNA_STORAGE=team.url("none"))
    away = f"postgresql://{LOGIN}@127.0.0.1:9/none"
    says("Optuna", "refused…: start the server, or correct host and port in OPTUNA_STORAGE", OPTUNA_STORAGE=away)
    says("Optuna", "unavailable…: start the server", OPTUNA_STORAGE="grpc://127.0.0.1:9")
    says("Optuna", "is MLflow's database: Optuna needs one of its own", OPTUNA_STORAGE=team.url("team_mlflow"))
    with _older(query, "team_optuna"):
        says("Optuna", "no longer compatible…`optuna storage upgrade", OPTUNA_STORAGE=url)
    store = team.url("team_mlflow")
    with _older(query, "team_mlflow"):
        says("MLflow", "out-of-date database schema…`mlflow db upgrade ADDRESS`", MLFLOW_TRACKING_URI=store)
    says("MLflow", "refused…: start the server", MLFLOW_TRACKING_URI=f"http://{LOGIN}@127.0.0.1:9")
    says("MLflow", "takes no artifacts: user and password must be ASCII", MLFLOW_TRACKING_PASSWORD=PASSWORD)
    with bad("401") as address:
        login = address.replace("//", f"//{LOGIN}@")
        says("MLflow", "401…: correct user and password in MLFLOW_TRACKING_URI", MLFLOW_TRACKING_URI=login)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # else it tries for seconds
    says("DVC", "connect to the endpoint…: start the server", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    Path(".dvc/config").write_text(REMOTE.format(bucket="no-team"))
    says("DVC", "bucket does not exist): create the bucket, or correct its name")


@contextmanager
def _older(query: Callable[[str, str], Any], database: str) -> Iterator[None]:
    """A database whose tables are of an older version."""
    ((version,),) = query("SELECT version_num FROM alembic_version", database)
    query("UPDATE alembic_version SET version_num = 'older'", database)
    try:
        yield
    finally:
        query(f"UPDATE alembic_version SET version_num = '{version}'", database)


@pytest.mark.usefixtures("remote")
def test_the_doctor_names_a_driver_that_is_missing_and_exits_with_2(
    team: Team, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", team.url("team_optuna"))
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setattr(sys, "argv", ["cvae", "doctor", "--services"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "psycopg is not installed): pip install '.[postgres]'" in capsys.readouterr().out
