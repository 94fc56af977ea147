"""`make` installs before anything else, and an installation that failed is repaired by the next `make`."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# In place of Python: `python -m venv .venv` brings one whose pip installs `dvc` and `pytest`, or ends as a file says.
PYTHON = """#!/bin/sh
mkdir -p .venv/bin && cat > .venv/bin/python <<'END' && chmod +x .venv/bin/python
#!/bin/sh
case "$*" in *pip*) ;; *) exit 0 ;; esac
echo installed >> log
test ! -e fail || eval "$(cat fail)"
for name in dvc pytest; do printf '#!/bin/sh\\necho %s "$@"\\n' $name > .venv/bin/$name; chmod +x .venv/bin/$name; done
END
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").touch()
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = ["make", f"PYTHON={folder}/python", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("failure", ["exit 1", "kill -9 $PPID; exit 1", "kill -9 $$"])
@pytest.mark.parametrize("target", ["repro", "test", ".venv"])
def test_an_installation_that_failed_is_repaired(target: str, failure: str, checkout: Path) -> None:
    (checkout / "fail").write_text(failure)
    assert make(checkout, target).returncode
    again = make(checkout, target)
    assert again.returncode and "No such file" not in again.stderr
    (checkout / "fail").unlink()
    ended = make(checkout, target)
    assert ended.returncode == 0, ended.stderr
    assert target == ".venv" or "dvc repro" in ended.stdout or "pytest --num" in ended.stdout
    assert (checkout / "log").read_text() == 3 * "installed\n"
    assert make(checkout, target).returncode == 0
    assert (checkout / "log").read_text() == 3 * "installed\n", "what is there is not installed again"


def test_another_lock_is_installed(checkout: Path) -> None:
    assert make(checkout, ".venv").returncode == 0
    os.utime(checkout / "requirements.lock", (2**31 - 1, 2**31 - 1))
    assert make(checkout, ".venv").returncode == 0
    assert (checkout / "log").read_text() == 2 * "installed\n"


def test_a_preset_does_not_take_the_place_of_edits_that_no_commit_has(checkout: Path) -> None:
    (checkout / "presets").mkdir()
    for name in ("paper", "tiny"):
        (checkout / f"presets/{name}.yaml").write_text(f"seed: {name}\n")
    params = checkout / "params.yaml"
    params.write_text("seed: 0\n")
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "first"]):
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        subprocess.run(["git", *identity, *words], cwd=checkout, check=True)
    for name in ("tiny", "paper", "paper"):  # nothing is lost of what was committed, nor of a preset
        assert make(checkout, "preset", f"PRESET={name}").returncode == 0
        assert params.read_text() == f"seed: {name}\n"
    params.write_text("seed: 5\n")
    ended = make(checkout, "preset", "PRESET=tiny")
    assert ended.returncode and "`git stash push params.yaml` keeps them" in ended.stderr
    assert params.read_text() == "seed: 5\n"
    params.unlink()
    assert make(checkout, "preset", "PRESET=tiny").returncode == 0
    ended = make(checkout, "preset", "PRESET=none")
    assert ended.returncode and "there is no preset none; there are: paper tiny" in ended.stderr


@pytest.mark.parametrize(
    "name", ["$(shell touch planted)", "$(touch planted)", "`touch planted`", "main;touch planted"]
)
def test_a_branch_s_name_is_no_command(name: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASE", name)
    made = make(checkout, "diff")
    assert made.returncode == 0, made.stderr
    assert not (checkout / "planted").exists()
