"""A colleague gets a study without a GPU: results through DVC's remote in S3, experiments through git's."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import studies
from clones import ENVIRONMENT, dvc, git, ran
from moto.server import ThreadedMotoServer

ROOT = Path(__file__).parents[2]
BUCKET = "studies"

pytestmark = pytest.mark.slow


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that speaks S3, with an empty bucket."""
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setitem(ENVIRONMENT, f"AWS_{name}", value)
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket=BUCKET)
    yield address
    server.stop()


def test_results_and_experiments_reach_a_fresh_clone_and_no_stage_runs(s3: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    studies.repository(made, ({"data": "lima"}, {"data": "orca"}))
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch", "main", "origin")
    git(made, "remote", "add", "origin", str(tmp_path / "origin"))
    # As docs/teams.md says, and where this server is. An experiment's remote is the one that its own commit names.
    dvc(made, "remote", "add", "--default", "store", f"s3://{BUCKET}/study")
    dvc(made, "remote", "modify", "store", "endpointurl", s3)
    git(made, "commit", "--quiet", "--all", "--message", "store")
    studies.experiment(made, "with-orca", "data=orca")
    git(made, "push", "--quiet", "origin", "main")
    dvc(made, "push", "--quiet")
    dvc(made, "exp", "push", "--quiet", "origin", "with-orca")

    git(tmp_path, "clone", "--quiet", str(tmp_path / "origin"), "fresh")
    fresh = tmp_path / "fresh"
    dvc(fresh, "pull", "--quiet", "--allow-missing")  # a base model is never pushed
    assert not (fresh / "models/base").exists() and (fresh / "models/sft").exists()
    assert not ran(dvc(fresh, "repro", "--pull", "--allow-missing"))
    dvc(fresh, "exp", "pull", "--quiet", "origin", "with-orca")
    words = ["-m", "commands.compare", "HEAD", "with-orca", "--baseline", "base", "--out", "metrics/study.md"]
    done = subprocess.run(
        [sys.executable, *words], cwd=fresh, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    assert "5 variants, 5 models" in done.stdout and (fresh / "metrics/study.html").exists()

    # A branch of the experiment's own, for a pull request.
    dvc(fresh, "exp", "branch", "with-orca", "try-orca")
    git(fresh, "push", "--quiet", "origin", "try-orca")
    assert "data: orca" in git(made, "archive", "--remote", str(tmp_path / "origin"), "try-orca", "params.yaml")
