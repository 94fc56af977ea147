"""What to know before a long run: whether this machine, this checkout and its sources can do what a params file says.

In: a params file. Out: one line a finding: ok, a warning, or a failure with what to type next; exit code 1 after a
failure. Nothing is changed: no parameter is edited, no lock removed, nothing downloaded but a few answers of the hub.
"""

import contextlib
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment import command, corpora, download, files, machine, models, pins, sources
from alignment.command import Refused
from alignment.machine import GB
from alignment.pins import Repository

Params = dict[str, Any]
KNOWN = Path("presets/paper.yaml")  # a test holds all presets to the same keys
ANSWER_SECONDS = 10  # that the hub may take
ROOM = 0.9  # of the memory: the rest is the system's, and the prediction's error
GPU_TOKENS = 8192  # of a forward pass, from which on a GPU gains little (LOG.md)
TOKEN_BUDGET = {"cpu": 512, "cuda": 16384}  # the fastest of those that LOG.md tried


class Level(StrEnum):
    """How much a finding matters."""

    ok = "ok"
    warning = "warning"
    failure = "failure"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, what was found, and what to do next ("" for nothing)."""

    check: str
    level: Level
    found: str
    next: str = ""


def ok(check: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Level.ok, found)


def warning(check: str, found: str, next: str) -> Finding:
    """The run will work; something is better known before it."""
    return Finding(check, Level.warning, found, next)


def failure(check: str, found: str, next: str) -> Finding:
    """The run would fail."""
    return Finding(check, Level.failure, found, next)


def main(
    path: Annotated[Path, typer.Argument(metavar="PARAMS", help="a params file, such as params.yaml")],
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON, for scripts")] = False,
) -> None:
    """Look at everything that can be known before a long run."""
    if not (KNOWN.is_file() and Path("dvc.yaml").is_file()):
        raise Refused(f"{Path.cwd()} is not the repository's own folder, where dvc.yaml lies: cd there, `make doctor`")
    found: list[Finding] = []
    try:
        params = load(path)
    except Refused as refusal:
        found = [*environment(), failure("parameters", str(refusal), f"correct {path}")]
    else:
        with contextlib.redirect_stdout(sys.stderr):  # what libraries say is no finding
            found = [*environment(), ok("parameters", f"{path} has every key"), *examine(params, path)]
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2, ensure_ascii=False))
    else:
        print("\n".join(line(finding) for finding in found))
        counts = {level: sum(finding.level is level for finding in found) for level in Level}
        print(f"\n{path}: {counts[Level.failure]} failures, {counts[Level.warning]} warnings, {counts[Level.ok]} ok")
    if any(finding.level is Level.failure for finding in found):
        raise SystemExit(1)


def line(finding: Finding) -> str:
    """A finding as it is printed; what to do stands on a line of its own."""
    lines = [f"{finding.level:<8} {finding.check}: {finding.found}"]
    return "\n".join(lines + [f"{'':8} → {finding.next}" for _ in [0] if finding.next]).replace("\n\n", "\n")


def load(path: Path) -> Params:
    """The parameters, as DVC reads them.

    Raises:
        Refused: no such file, or no YAML, or a key is missing, unknown, or of another kind than in `KNOWN`.
    """
    from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml  # type: ignore[import-untyped]

    if not path.is_file():
        raise Refused(f"there is no file {path}; params.yaml and presets/*.yaml are such files")
    try:
        params = load_yaml(str(path))
    except (YAMLFileCorruptedError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is no YAML: {_why(error)}") from None
    if not isinstance(params, dict):
        raise Refused(f"{path}: found {type(params).__name__}, wanted keys and values as in {KNOWN}")
    wrong = list(_differences(params, load_yaml(str(KNOWN))))
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise Refused(f"{path}, beside {KNOWN}: {'; '.join(wrong[:8])}{more}")
    corpora.load(params["data"], corpora.Role.demonstrations)
    corpora.load(params["preferences"], corpora.Role.comparisons)
    choices = {"device": ("cpu", "cuda"), "dtype": tuple(machine.BYTES), "quantization": ("none", "nf4")}
    for name, known in choices.items():
        if params[name] not in known:
            raise Refused(f"{path}: {name} is {params[name]!r}, wanted {' or '.join(known)}")
    return dict(params)


def _why(error: BaseException) -> str:
    """What is wrong and on which line, from the YAML reader's own error, which DVC wraps."""
    cause = error.__cause__
    mark = getattr(cause, "problem_mark", None)
    return f"{getattr(cause, 'problem', cause)}, line {mark.line + 1}" if mark else str(cause or error)


def _differences(found: Params, wanted: Params, prefix: str = "") -> Iterator[str]:
    for key in sorted({*found, *wanted}):
        name = f"{prefix}{key}"
        if key not in found:
            yield f"the key {name} is missing"
        elif key not in wanted:
            yield f"the key {name} is unknown"
        elif isinstance(wanted[key], dict) and isinstance(found[key], dict):
            yield from _differences(found[key], wanted[key], f"{name}.")
        elif type(found[key]) is not type(wanted[key]) and {type(found[key]), type(wanted[key])} != {int, float}:
            yield f"{name} is {found[key]!r} ({type(found[key]).__name__}), wanted {type(wanted[key]).__name__}"
        elif type(found[key]) is int and found[key] < 1 and key not in ("seed", "item_seed", "heldout", "malformed"):
            yield f"{name} is {found[key]}, wanted at least 1"


# The environment -----------------------------------------------------------------------------------------------------


def environment() -> list[Finding]:
    """Python and the packages, which do not depend on parameters."""
    return [python(), packages(Path("requirements.lock"))]


def python() -> Finding:
    """The interpreter against what pyproject.toml asks for."""
    from packaging.specifiers import SpecifierSet

    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    wanted, version = project["project"]["requires-python"], ".".join(map(str, sys.version_info[:3]))
    if version not in SpecifierSet(wanted):
        return failure("python", f"{version}, wanted {wanted}", "make .venv PYTHON=<a newer python>")
    return ok("python", f"{version} ({sys.executable})")


def packages(lock: Path) -> Finding:
    """What is installed against the lock; a build such as 2.13.0+cpu is that version."""
    lines = [text.strip() for text in lock.read_text(encoding="utf-8").splitlines()]
    pinned = [text.partition("==")[::2] for text in lines if text and not text.startswith(("#", "-"))]
    other = []
    for name, wanted in pinned:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "absent"
        if wanted not in (version, version.partition("+")[0]):
            other.append(f"{name} {version} (locked: {wanted})")
    if other:
        named = ", ".join(other[:12]) + (f" and {len(other) - 12} more" if len(other) > 12 else "")
        text = f"{len(other)} of {len(pinned)} packages differ from {lock}: {named}"
        return warning("packages", text, f"{sys.executable} -m pip install --requirement {lock}")
    return ok("packages", f"all {len(pinned)} of {lock} are installed as locked")


# What the parameters ask for -----------------------------------------------------------------------------------------


def examine(params: Params, path: Path) -> list[Finding]:
    """Everything that depends on the parameters."""
    found, sizes = source(params)
    found += own_files(params)
    study = repo()
    found += device(params)
    shape = machine.shape(params["model"], params["source"], Path("models/base"))
    found += disk(params, shape, sizes, study)
    if shape is None:
        text = f"nothing here says which shape {params['model']} has, so memory and time are not predicted"
        found.append(warning("memory", text, "dvc repro fetch@model, then make doctor again"))
    else:
        found += memory(params, shape)
        found += time(params, shape) if usable(params["device"]) else []
    return [*found, *processes(params), *git(), *dvc(study)]


def repositories(params: Params) -> list[Repository]:
    """What `fetch` will ask `source` for."""
    found = []
    if match := re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w.-]+)", params["model"]):
        files_wanted, gated = ("config.json", "*.safetensors"), match[1].startswith("meta-llama/")  # no pin says so
        found.append(Repository(match[1], match[2], files_wanted, pins.UNSTATED, gated=gated, host="model"))
    names = dict.fromkeys((params["data"], params["preferences"]))
    found += [repository for name in names if (repository := corpora.load(name).SOURCE)]
    found += [*pins.BENCHMARKS.values(), *pins.more(params["more_benchmarks"]).values()]
    return found + ([pins.SAFETY] if params["sentences"] == "safenlp" else [])


def source(params: Params) -> tuple[list[Finding], dict[str, int]]:
    """Whether each repository can be had, and the bytes of those whose place says."""
    try:
        wanted, root = repositories(params), sources._mirror(params["source"])
    except Refused as refusal:
        return [failure("source", str(refusal), "correct `source`, `model` or `more_benchmarks`")], {}
    if isinstance(root, Path):
        return _in_folder(wanted, root)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda repository: _ask(repository, root), wanted))
    found = [answer.finding for answer in answers if answer.finding]
    unreached: dict[str, list[str]] = {}
    for repository, answer in zip(wanted, answers, strict=True):
        if answer.unreached:
            unreached.setdefault(answer.unreached, []).append(repository.name)
    way = "try again when the network is up, or set `source` to the absolute path of a mirror folder"
    found += [failure("source", f"{said}; needed from there: {', '.join(n)}", way) for said, n in unreached.items()]
    if not found:
        place = "the hub and GitHub" if root is None else root
        found = [ok("source", f"{place}: all {len(wanted)} repositories answer at their pinned revisions")]
    token = [_token(wanted)] if root is None else []
    return [*token, *found], {r.name: answer.size for r, answer in zip(wanted, answers, strict=True) if answer.size}


@dataclass(frozen=True)
class Answer:
    """What a place said of a repository.

    Attributes:
        finding: why it cannot be had, or None.
        size: bytes of its files, 0 where that was not said.
        unreached: which place gave no answer, in words, or "".
    """

    finding: Finding | None = None
    size: int = 0
    unreached: str = ""


def _in_folder(wanted: list[Repository], root: Path) -> tuple[list[Finding], dict[str, int]]:
    found, sizes = [], {}
    for repository in wanted:
        folder = root / repository.name
        if not folder.is_dir():
            is_model = repository.host == "model"
            way = "choose a `model` that is a wheel, a folder or `random:`, or a" if is_model else "complete it, or a"
            found.append(failure("source", f"{root} has no folder {repository.name}", f"{way}nother `source`"))
            continue
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        try:
            chosen = sources.choose(names, repository, (), str(folder))
        except Refused as refusal:
            found.append(failure("source", str(refusal).splitlines()[0], "complete that folder, or another `source`"))
        else:
            sizes[repository.name] = sum((folder / name).stat().st_size for name in chosen)
    return found or [ok("source", f"{root} has all {len(wanted)} repositories")], sizes


def _token(wanted: list[Repository]) -> Finding:
    from huggingface_hub import get_token

    gated = [repository for repository in wanted if repository.gated]
    if get_token():
        return ok("token", "one is set; it is shown nowhere")
    if gated:
        said = f"HF_TOKEN is not set, and gated are {', '.join(repository.name for repository in gated)}"
        pages = ", ".join(_page(repository) for repository in gated)
        return failure("token", said, f"accept the terms on {pages}; then export HF_TOKEN=…")
    return ok("token", "HF_TOKEN is not set, and nothing gated is needed")


def _page(repository: Repository) -> str:
    """Where a repository's terms are read and accepted."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if repository.host == 'dataset' else ''}{repository.name}"


def _ask(repository: Repository, root: str | None) -> Answer:
    """Ask for a repository's files and for the head of one, which tells whether this user may have it."""
    from httpx2 import HTTPError
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    name, revision, kind = repository.name, repository.revision, repository.host
    place = download.Place(name, revision, f"the hub ({_page(repository)})", hub=True)
    if root:
        place = download.Place(name, revision, f"the mirror ({root}/{name}/)")
    elif kind == "github":
        address = f"{sources.GITHUB}/{name}/{revision}/{repository.files[0]}"
        place = download.Place(name, revision, f"GitHub ({address})")
    try:
        if place.hub:
            return Answer(size=_ask_hub(repository, place))
        ask = get_session().get if root else get_session().head
        hf_raise_for_status(ask(f"{root}/{name}/" if root else address, timeout=ANSWER_SECONDS))
    except Refused as refusal:
        return Answer(failure("source", str(refusal).splitlines()[0], "correct the pin, or `source`"))
    except (HTTPError, OSError) as error:
        status = download._status(error)
        if status is None:
            offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else download._brief(error, status)
            host = root or (constants.ENDPOINT if place.hub else sources.GITHUB)
            return Answer(unreached=f"{host} could not be reached ({offline}): this machine may be offline")
        # The last sentence of a refusal says what to do.
        said, _, way = re.sub(r"\.\n", ". ", download._explain(error, status, place)).partition(". ")
        return Answer(failure("source", said, way[:1].lower() + way[1:]))
    return Answer(size=sum(size for size, _ in repository.stated.values()))


def _ask_hub(repository: Repository, place: download.Place) -> int:
    """The bytes of a repository's files on the hub."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    name, kind, revision = repository.name, repository.host, repository.revision
    info: Any = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=ANSWER_SECONDS, files_metadata=True)
    siblings = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    chosen = sources.choose(siblings, repository, (), place.where)
    # A gated repository states its files to everyone and gives none of them.
    get_hf_file_metadata(hf_hub_url(name, chosen[0], repo_type=kind, revision=revision), timeout=ANSWER_SECONDS)
    return sum(siblings[file] for file in chosen)


def own_files(params: Params) -> list[Finding]:
    """The files of the section `own`: DVC depends on all three, and a queued experiment sees what git tracks."""
    found = []
    used = {"demonstrations": params["data"], "comparisons": params["preferences"], "sentences": params["sentences"]}
    for key, name in params["own"].items():
        path = Path(name)
        if not path.is_file():
            text = f"own.{key}: there is no file {path}" + ("" if used[key] == "own" else ", which DVC depends on")
            found.append(failure("own files", text, f"correct own.{key}; data/mini/own/ has the default"))
        elif (
            not path.is_absolute()
            and _git("ls-files", "--error-unmatch", name) is None
            and _git("rev-parse", "--git-dir")
        ):
            text = f"own.{key}: git does not track {path}, so a queued experiment, a copy of what it tracks, lacks it"
            found.append(failure("own files", text, f"git add {shlex.quote(name)}, or write its absolute path"))
    return found or [ok("own files", "each is there, and in a queued experiment too")]


# The machine ---------------------------------------------------------------------------------------------------------


def usable(device: str) -> bool:
    """Whether the device is here."""
    if device == "cpu":
        return True
    import torch

    return torch.cuda.is_available()


def device(params: Params) -> list[Finding]:
    """The GPU with its driver, or the processors, and whether they are quick at `dtype`."""
    import torch

    if params["device"] == "cpu":
        hint = "bfloat16 in hardware" if _bfloat16_on_cpu() else "no bfloat16 in hardware: dtype float32 is faster"
        text = f"cpu, {machine.cores()} cores, {_threads()} used by torch, {hint}"
        if torch.cuda.is_available():
            return [warning("device", f"{text}; a GPU is here and not used", "set `device: cuda`")]
        if params["dtype"] == "bfloat16" and not _bfloat16_on_cpu():
            return [warning("device", text, "set `dtype: float32`")]
        return [ok("device", text)]
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch {torch.__version__} has CUDA {built} and sees no GPU" if built else "torch has no CUDA in it"
        # pip takes a build without CUDA for the same version and would leave it.
        pip = f"{sys.executable} -m pip"
        again = f"{pip} uninstall --yes torch && {pip} install torch=={_plain_torch()}"
        way = "see that `nvidia-smi` shows it" if built else again
        return [failure("device", f"`device: cuda`, and {why}", f"set `device: cpu`, or {way}")]
    total, free = machine.memory("cuda")
    backends: Any = torch.backends.cuda
    kernels = {
        "flash": backends.flash_sdp_enabled(),
        "memory-efficient": backends.mem_efficient_sdp_enabled(),
        "cuDNN": backends.cudnn_sdp_enabled(),
        "plain": backends.math_sdp_enabled(),
    }
    attention = ", ".join(name for name, offered in kernels.items() if offered)
    text = (
        f"{torch.cuda.get_device_name()}, {total / GB:.0f} GB, {free / GB:.0f} GB free, {torch.cuda.device_count()} "
        f"visible, driver {_driver()}, CUDA {torch.version.cuda}, attention: {attention}"
    )
    if params["dtype"] == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return [warning("device", f"{text}; it has no bfloat16", "set `dtype: float32`")]
    return [ok("device", text)]


def _plain_torch() -> str:
    return metadata.version("torch").partition("+")[0]


def _bfloat16_on_cpu() -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def _driver() -> str:
    try:
        ended = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return ended.stdout.split("\n")[0].strip() or "unknown"


def training(params: Params, stage: str) -> machine.Training:
    """What decides the memory of a training stage. DPO goes on with the adapter of SFT, its rank and dropout."""
    return machine.Training(
        dtype=params["dtype"],
        device=params["device"],
        quantization=params["quantization"],
        per_device_batch=min(params["per_device_batch"], _step(params[stage])),
        max_tokens=params["sample"]["max_tokens"],
        rank=params["sft"]["rank"],
        dropout=params["sft"]["dropout"],
        gradient_checkpointing=params[stage]["gradient_checkpointing"],
        sequences=2 if stage == "dpo" else 1,
    )


def _step(section: Params) -> int:
    """Rows of an optimiser step, more than which no forward pass has; a budget of tokens sets no bound."""
    return int(section["batch"]) if section["budget"] == "epochs" else sys.maxsize


def memory(params: Params, shape: machine.Shape) -> list[Finding]:
    """Predicted peaks of sft, dpo, eval and safety against the device's memory, with what to lower."""
    here = usable(params["device"])
    total, free = machine.memory(params["device"]) if here else (math.inf, math.inf)
    shared = count_processes(params["launch"]) if params["device"] == "cpu" else 1
    found = []
    for stage in ("sft", "dpo"):
        run = training(params, stage)
        need = machine.training_memory(shape, run)
        what = f"{run.per_device_batch} × {run.max_tokens} tokens a pass" + " and side" * (stage == "dpo")
        found.append(_fits(stage, what, need, shared, total, free, lower(shape, run, stage, total / shared)))
    for stage, dtype in (("eval", params["dtype"]), ("safety", params["safety"]["dtype"])):
        need = machine.scoring_memory(shape, dtype, params["device"], params["token_budget"])
        way = f"lower `token_budget` to {_budget(params, shape, total / shared)}" + (
            "; a batch that does not fit is split, saying so"
        )
        what = f"{params['token_budget']} tokens a pass in {dtype}"
        found.append(_fits(stage, what, need, shared, total, free, way))
    return [*found, *([proposal(params, shape, total / shared)] if here else [])]


def _fits(stage: str, what: str, need: dict[str, float], shared: int, total: float, free: float, way: str) -> Finding:
    peak = shared * sum(need.values())
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in need.items() if size >= 0.05 * GB)
    times = f"{shared} processes of " if shared > 1 else ""
    has = f"of {total / GB:.1f} GB, {free / GB:.1f} free" if total < math.inf else "of a device that is not here"
    text = f"{stage}: about {peak / GB:,.1f} GB at most {has} ({times}{what}: {parts})"
    if peak > ROOM * total:
        return failure("memory", text, way)
    if peak > free:
        return warning("memory", text, "end other processes first, or " + way)
    return ok("memory", text)


def lower(shape: machine.Shape, run: machine.Training, stage: str, total: float) -> str:
    """The first of per_device_batch, gradient_checkpointing and nf4, in this order, with which training fits."""

    def fits(run: machine.Training) -> bool:
        return sum(machine.training_memory(shape, run).values()) <= ROOM * total

    ways: list[tuple[dict[str, Any], str]] = [
        ({"per_device_batch": n}, f"set `per_device_batch: {n}`")
        for n in machine.powers(run.per_device_batch)
        if n < run.per_device_batch
    ]
    one = {"per_device_batch": 1, "gradient_checkpointing": True}
    checked = "set `per_device_batch: 1`, " + f"`{stage}.gradient_checkpointing: true`"
    ways += [(one, checked), (one | {"quantization": "nf4"}, checked + ", `quantization: nf4`")]
    for changes, way in ways:
        if fits(replace(run, **changes)):
            return way
    return "lower `sample.max_tokens`, or take a smaller `model` or a larger device: nothing else makes it fit"


def _budget(params: Params, shape: machine.Shape, total: float) -> int:
    """The quickest token budget that fits eval and safety."""
    for tokens in machine.powers(TOKEN_BUDGET[params["device"]]):
        needs = (
            machine.scoring_memory(shape, dtype, params["device"], tokens)
            for dtype in (params["dtype"], params["safety"]["dtype"])
        )
        if tokens <= 64 or all(sum(need.values()) <= ROOM * total for need in needs):
            return tokens
    return 64


def proposal(params: Params, shape: machine.Shape, total: float) -> Finding:
    """What to write for this device: rows a pass that fit sft and dpo and are quick, and a token budget."""
    runs = [training(params, stage) for stage in ("sft", "dpo")]
    # On a CPU one row a pass was the quickest; a GPU wants `GPU_TOKENS`, and most rows are far from the longest.
    most = 1 if params["device"] == "cpu" else min(params["sft"]["batch"], params["dpo"]["batch"])
    for rows in machine.powers(most):
        needs = (sum(machine.training_memory(shape, replace(run, per_device_batch=rows)).values()) for run in runs)
        if (rows == 1 or rows * runs[0].max_tokens <= 4 * GPU_TOKENS) and all(need <= ROOM * total for need in needs):
            break
    else:
        return warning("proposal", "no per_device_batch fits both sft and dpo here", "see the lines on memory above")
    text = f"for this device: per_device_batch: {rows}, token_budget: {_budget(params, shape, total)}"
    return ok("proposal", f"{text} (the last digits of results may change with them)")


def count_processes(launch: str) -> int:
    """How many processes `launch` starts."""
    words = shlex.split(launch)
    for flag in ("--num_processes", "--num-processes", "--nproc_per_node"):
        if flag in words[:-1] and words[words.index(flag) + 1].isdigit():
            return int(words[words.index(flag) + 1])
    if "--config_file" in words[:-1] and (path := Path(words[words.index("--config_file") + 1])).is_file():
        from dvc.utils.serialize import load_yaml  # type: ignore[import-untyped]

        return int(load_yaml(str(path)).get("num_processes", 1))
    return 1


def processes(params: Params) -> list[Finding]:
    """`launch` against the GPUs, nf4 against what is installed."""
    found, count = [], count_processes(params["launch"])
    words = shlex.split(params["launch"])
    if "--config_file" in words[:-1] and not Path(words[words.index("--config_file") + 1]).is_file():
        path = words[words.index("--config_file") + 1]
        found.append(failure("processes", f"`launch` names {path}, which is not here", "correct `launch`; see launch/"))
    if params["device"] == "cuda" and usable("cuda"):
        import torch

        gpus = torch.cuda.device_count()
        if count > gpus:
            text = f"`launch` starts {count} processes for {gpus} visible GPUs"
            found.append(failure("processes", text, f"set its --num_processes to {gpus}"))
        elif count < gpus:
            text = f"`launch` starts {count} process{'es' * (count > 1)} for {gpus} visible GPUs: the others idle"
            way = f"set `launch: accelerate launch --multi_gpu --num_processes {gpus} -m`"
            found.append(warning("processes", text, way))
    elif params["device"] == "cpu" and count > machine.cores():
        text = f"`launch` starts {count} processes on {machine.cores()} cores, which slow each other down"
        found.append(warning("processes", text, f"set its --num_processes to {machine.cores()} at most"))
    if params["quantization"] == "nf4" and not importlib.util.find_spec("bitsandbytes"):
        way = f"{sys.executable} -m pip install {models.BITSANDBYTES}, or set `quantization: none`"
        found.append(failure("processes", "quantization nf4 needs bitsandbytes, which is not installed", way))
    return found or [ok("processes", f"`launch` starts {count}; quantization {params['quantization']}")]


# Time ----------------------------------------------------------------------------------------------------------------


def time(params: Params, shape: machine.Shape) -> list[Finding]:
    """Hours of sft, dpo, and of eval and safety together, from a measured matrix product."""
    device, dtype, count = params["device"], params["dtype"], count_processes(params["launch"])
    if device == "cpu":
        count = 1  # processes share the cores
    peaks = {kind: machine.matrix_peak(kind, device) * count for kind in {dtype, params["safety"]["dtype"]}}
    said = ", ".join(f"{peak / 1e9:,.0f} GFLOP/s in {kind}" for kind, peak in sorted(peaks.items()))
    where = f"{count} GPU{'s' * (count > 1)}" if device == "cuda" else f"{_threads()} thread{'s' * (_threads() > 1)}"
    found = [ok("speed", f"{said}: a matrix product on {where}, measured now, beside whatever else runs")]
    share = machine.TRAINING_SHARE[device]
    for stage, role, sequences in (("sft", "demonstrations", 1), ("dpo", "comparisons", 2)):
        passes, length, base = amount(params, role)
        flops = machine.training_flops(shape, passes * length * sequences, length, sequences)
        if params[stage]["gradient_checkpointing"]:
            flops *= 4 / 3
        seconds = flops / (peaks[dtype] * share) + machine.START_SECONDS
        text = f"{stage}: about {_span(seconds)}, an estimate from {base}, at {share:.0%} of that speed"
        found.append(ok("time", text))
    found.append(_scoring_time(params, shape, peaks))
    return found


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def amount(params: Params, role: str) -> tuple[float, float, str]:
    """How many sequences (of dpo, pairs) are trained, their mean tokens, and what that is based on."""
    stage = params["sft" if role == "demonstrations" else "dpo"]
    corpus, rows = params["data" if role == "demonstrations" else "preferences"], params["rows"][role]
    metrics = Path(f"metrics/sample/{role}.json")
    if metrics.is_file() and _sampled_alike(params, role, corpus):
        figures = files.read_json(metrics)
        rows, other = figures["rows.kept"], figures.get("tokens.rejected.mean", figures["tokens.reply.mean"])
        length = figures["tokens.total"] / rows
        if role == "comparisons":
            length = figures["tokens.prompt.mean"] + (figures["tokens.reply.mean"] + other) / 2
        base = f"{rows:,} rows of {length:.0f} tokens as {metrics} counts them"
    else:
        rows, length = min(rows, machine.ROWS.get(corpus, rows)), params["sample"]["max_tokens"]
        base = f"{rows:,} rows as if each had `max_tokens`, {length:,}: an upper bound until `sample` has counted them"
    passes = rows * stage["epochs"]
    if stage["budget"] == "tokens":
        sides = 2 if role == "comparisons" else 1
        passes, base = stage["tokens"] / length / sides, f"{stage['tokens']:,} tokens, prompts not counted; {base}"
    return passes, length, base


def _sampled_alike(params: Params, role: str, corpus: str) -> bool:
    """Whether the rows in the workspace were sampled as these parameters say, as far as dvc.lock tells."""
    from dvc.utils.serialize import load_yaml  # type: ignore[import-untyped]

    if not Path("dvc.lock").is_file():
        return False
    ran = load_yaml("dvc.lock").get("stages", {})
    commands = [ran.get(name, {}).get("cmd", "") for name in (f"sample@{role}", f"fetch-corpus@{role}")]
    sampled, fetched = (f"{text} ".replace("\n", " ") for text in commands)
    wanted = {"corpus": corpus, "rows": params["rows"][role], "max_tokens": params["sample"]["max_tokens"]}
    return f"--source {params['source']} " in fetched and all(
        f"--{name} {value} " in sampled for name, value in wanted.items()
    )


def _scoring_time(params: Params, shape: machine.Shape, peaks: dict[str, float]) -> Finding:
    share, items = machine.SCORING_SHARE[params["device"]], {}
    for entry in params["eval"]["items"]:
        task, _, count = entry.partition("=")
        items[task] = int(count) if count.isdigit() else None
    unknown = [task for task in items if task not in machine.READ]
    flops = sum(
        machine.scoring_flops(shape, min(items[task] or whole, whole), read, scored)
        for task, (whole, read, scored) in machine.READ.items()
        if task in items
    )
    whole, read, scored = machine.SENTENCE
    sentences = min(params["safety"]["limit"], whole) if params["sentences"] == "safenlp" else params["safety"]["limit"]
    safety = machine.scoring_flops(shape, sentences, read, scored)
    evaluating, judging = flops / peaks[params["dtype"]], safety / peaks[params["safety"]["dtype"]]
    seconds = 3 * ((evaluating + judging) / share + 2 * machine.START_SECONDS)
    without = f"; not counted: {', '.join(unknown)}" if unknown else ""
    text = f"eval and safety of base, sft, dpo: about {_span(seconds)}, an estimate from real items' tokens"
    return ok("time", f"{text}, at {share:.0%} of that speed{without}")


def _span(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"


# Disk ----------------------------------------------------------------------------------------------------------------


def disk(params: Params, shape: machine.Shape | None, sizes: dict[str, int], study: Any) -> list[Finding]:
    """Bytes that the parameters' files need, against what is free where they will lie."""
    workspace = Path.cwd()
    cache = Path(study.cache.local.path) if study else workspace / ".dvc/cache"
    parts = _bytes(params, shape, sizes)
    # Fetched, then linked: by copies only where the file system has no other way, and then everything lies twice.
    copies = bool(study) and not set(link_types(study)) - {"copy"}
    places = {"the DVC cache": cache, "the workspace": workspace}
    devices = {place: _there(path).stat().st_dev for place, path in places.items()}
    total = sum(size for size, _ in parts.values())
    need = {"the DVC cache": total, "the workspace": total if copies else 0.0}
    if len(set(devices.values())) == 1:
        need = {"the DVC cache and the workspace": sum(need.values())}
    told = "; ".join(f"{name} {size / GB:.2f}, {how}" for name, (size, how) in parts.items() if size >= 0.01 * GB)
    found = []
    for place, wanted in need.items():
        path = cache if "cache" in place else workspace
        free = shutil.disk_usage(_there(path)).free
        why = f"for a run from nothing ({told or 'little of each'})" if wanted else "since files are links to the cache"
        text = f"{place} ({path}): up to {wanted / GB:.2f} GB {why}; {free / GB:.1f} GB free"
        if wanted > free:
            way = "free that much, or `dvc cache dir <folder on a larger disk>`"
            found.append(failure("disk", text, way))
        else:
            found.append(ok("disk", text))
    return found


def _there(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _bytes(params: Params, shape: machine.Shape | None, sizes: dict[str, int]) -> dict[str, tuple[float, str]]:
    """Estimated bytes by kind, and how each is estimated."""
    adapter = shape.adapter(params["sft"]["rank"]) if shape else 0
    checkpoint = adapter * (machine.ADAPTER + 4.0)
    wanted = {"demonstrations": (params["data"], 1), "comparisons": (params["preferences"], 2)}
    sampled = sum(
        min(params["rows"][role], machine.ROWS.get(corpus, params["rows"][role])) * sides
        for role, (corpus, sides) in wanted.items()
    )
    raw = [sizes.get(repository.name, 0) for repository in pins.BENCHMARKS.values()]
    return {
        "model": _model_bytes(params["model"], shape, sizes),
        **{name: _corpus_bytes(name, params["own"], sizes) for name, _ in wanted.values()},
        "benchmarks": (sum(raw), "as stated") if all(raw) else (machine.BENCHMARK_BYTES, "a guess"),
        "sampled rows": (sampled * params["sample"]["max_tokens"] * 4.0, "rows × max_tokens × 4 bytes"),
        "checkpoints and adapters": (
            machine.CHECKPOINTS * checkpoint + 2 * 4.0 * adapter,
            f"{machine.CHECKPOINTS} of {adapter / 1e6:.1f} million LoRA weights × 20 bytes",
        ),
    }


def _model_bytes(model: str, shape: machine.Shape | None, sizes: dict[str, int]) -> tuple[float, str]:
    if stated := sizes.get(model.partition("@")[0]):
        return stated, "as stated"
    if shape is None:
        return 0.0, "unknown: no shape"
    # Repositories and folders mostly hold 16 bits a weight; a wheel and random weights are written in float32.
    size = 4 if model.startswith(("wheel:", "random:")) else 2
    return shape.parameters * float(size), f"{shape.parameters / 1e9:.2f} billion weights × {size} bytes"


def _corpus_bytes(name: str, own: Params, sizes: dict[str, int]) -> tuple[float, str]:
    repository = corpora.load(name).SOURCE
    if repository is None:
        paths = [Path(path) for path in own.values() if Path(path).is_file()]
        return sum(path.stat().st_size for path in paths), "the files"
    stated = sizes.get(repository.name)
    return (stated, "as stated") if stated else (machine.CORPUS_BYTES.get(name, 0), "a table")


# Git and DVC ---------------------------------------------------------------------------------------------------------


def _git(*arguments: str) -> str | None:
    """What git says, or None where it fails."""
    try:
        ended = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout if ended.returncode == 0 else None


def git() -> list[Finding]:
    """Whether an experiment can record the commit that it ran."""
    if _git("rev-parse", "--git-dir") is None:
        text = "this folder is no git repository, so `dvc exp run` cannot work"
        return [failure("git", text, "git clone it, or `git init && git add . && git commit`")]
    if _git("rev-parse", "HEAD") is None:
        return [failure("git", "there is no commit yet, so `dvc exp run` cannot work", "git add . && git commit")]
    found = []
    changed = (_git("status", "--porcelain") or "").splitlines()
    untracked = sum(entry.startswith("??") for entry in changed)
    if changed:
        text = f"{len(changed) - untracked} changed and {untracked} untracked files: a result would not name its code"
        found.append(warning("git", text, "git add … && git commit (a queued experiment lacks untracked files)"))
    if (_git("rev-parse", "--is-shallow-repository") or "").strip() == "true":
        found.append(warning("git", "the clone is shallow: no comparison with older commits", "git fetch --unshallow"))
    return found or [ok("git", f"clean, at {(_git('rev-parse', '--short', 'HEAD') or '').strip()}")]


def repo() -> Any:
    """DVC's view of this folder, or None."""
    from dvc.exceptions import DvcException, NotDvcRepoError  # type: ignore[import-untyped]
    from dvc.repo import Repo  # type: ignore[import-untyped]

    try:
        return Repo()
    except (NotDvcRepoError, DvcException):
        return None


def dvc(study: Any) -> list[Finding]:
    """The remote, the links between cache and workspace, and locks of a DVC that was killed."""
    if study is None:
        return [failure("dvc", "this folder is no DVC repository", "run it where dvc.yaml lies; `dvc init` if new")]
    found = []
    if not study.config["core"].get("remote"):
        way = "dvc remote add --default NAME URL, if results are to be shared or kept elsewhere"
        found.append(warning("dvc", "no default remote: results lie on this disk alone", way))
    wanted, able = study.config["cache"].get("type") or ["reflink", "copy"], link_types(study)
    first = next((kind for kind in wanted if kind in able), "none")
    if first in ("copy", "none"):
        text = f"cache.type {','.join(wanted)}, and the file system has {', '.join(able)}: every file lies twice"
        found.append(warning("dvc", text, "dvc config cache.type reflink,hardlink,symlink,copy; or one file system"))
    found += locks(Path(study.tmp_dir))
    return found or [ok("dvc", f"default remote {study.config['core']['remote']}, links by {first}, no lock held")]


def link_types(study: Any) -> list[str]:
    """The ways in which the file systems of cache and workspace can share a file; `copy` always works."""
    from dvc.fs import LocalFileSystem  # type: ignore[import-untyped]
    from dvc_objects.fs import generic

    local, cache = LocalFileSystem(), study.cache.local
    kinds = ["reflink", "hardlink", "symlink"]
    # DVC's own test: it makes two small files and removes them.
    return [*generic.test_links(kinds, cache.fs, cache.path, local, str(Path.cwd() / ".dvc" / "tmp" / "x")), "copy"]


def locks(tmp: Path) -> list[Finding]:
    """What DVC holds, by `rwlock`: processes with the files they read and write, which a killed DVC leaves there.

    The files `lock` and `rwlock.lock` are locks of the system, which it takes back from a process that ends.
    """
    path = tmp / "rwlock"
    if not path.is_file() or not (text := path.read_text(encoding="utf-8", errors="replace").strip()):
        return []
    cure = f"rm {os.path.relpath(path)}"
    try:
        held = json.loads(text)
        holders = [info for infos in held.get("read", {}).values() for info in infos]
        holders += list(held.get("write", {}).values())
        owners = {int(info["pid"]): str(info["cmd"]) for info in holders}
    except (ValueError, TypeError, KeyError, AttributeError):
        way = f"{cure}, once no DVC runs (ps aux | grep dvc)"
        return [failure("dvc", f"{path} is cut short or damaged, and DVC would stop at it", way)]
    alive = {pid: cmd for pid, cmd in owners.items() if machine.lives(pid)}
    found = []
    for pid, cmd in alive.items():
        now = machine.started_as(pid)
        if now and "dvc" not in now:
            text = f"{path} is held by process {pid} (`{cmd}`), which died: {pid} is now another, `{now[:60]}`"
            found.append(failure("dvc", text, cure))
        else:
            text = f"process {pid} (`{cmd}`) is at work here and holds {path}"
            found.append(warning("dvc", text, "wait for it to end; this machine's memory and cores are shared with it"))
    if dead := sorted(set(owners) - set(alive)):
        text = f"{path} still names process {', '.join(map(str, dead))} (`{owners[dead[0]]}`), which is dead"
        found.append(warning("dvc", text, f"nothing: the next DVC on this machine clears it; or {cure}"))
    return found


if __name__ == "__main__":
    command.run(main, offline=False)
