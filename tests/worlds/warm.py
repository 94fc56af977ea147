"""Stages that start warm, for tests that run DVC: a server that has imported what stages import forks one a command.

More than half of a stage on the tiny preset goes into the import of torch, transformers and TRL. `python` in the PATH
of such a test is a client: it hands its words, its folder, its environment and its open files to the server, and ends
as the stage ends. What is killed, stopped, shared by processes or timed is started without it, by real processes; so
are the stages of the fault campaign, whose bytes must be those of a clone that was made here, with another hash seed.
"""

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import psutil

STAGES = [f"stages.{name}" for name in ("sample", "sft", "dpo", "eval", "safety")]
IMPORTS = (
    "pandas", "scipy.stats", "sklearn.metrics", "peft", "datasets", "accelerate", "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer", "transformers.models.llama.modeling_llama", "lm_eval.models.huggingface",
    "lm_eval.tasks.truthfulqa.utils",
)  # fmt: skip
CLIENT = """#!{python} -ISE
import json, os, socket, sys
words = sys.argv[1:]
if words[:1] == ["-m"] and words[1] in {stages}:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect({address!r})
        said = json.dumps([words[1:], os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(server, [len(said).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(said)
        sys.exit(int(server.recv(8) or b"1"))
os.execv({python!r}, [{python!r}, *words])
"""


def begin(folder: Path) -> None:
    """Start a server that lives as long as this test run, and write `folder/bin/python`, its client."""
    address = folder / "server"
    until = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()  # the process of the whole run
    (folder / "bin").mkdir()
    client = folder / "bin/python"
    client.write_text(CLIENT.format(python=sys.executable, stages=STAGES, address=str(address)))
    client.chmod(0o755)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with (folder / "said").open("w") as said:
        code = subprocess.run(
            [sys.executable, __file__, str(address), str(until)],
            env={**os.environ, **offline, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"},
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, check=False,
        ).returncode  # fmt: skip
    assert code == 0, (folder / "said").read_text()


def serve(address: str, until: int) -> None:
    """Fork a stage for each client, until a process has ended; in the background, once the imports are made."""
    for name in IMPORTS:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        if os.fork():
            os._exit(0)
        while psutil.pid_exists(until):
            if select.select([server], [], [], 1)[0]:
                client, _ = server.accept()
                if os.fork() == 0:
                    server.close()
                    os._exit(attend(client))
                client.close()


def attend(client: socket.socket) -> int:
    """Run a client's stage and tell it the exit code; kill the stage if the client is killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(client, 4, 3)
    said = b""
    while len(said) < int.from_bytes(size, "big"):
        said += client.recv(1 << 16)
    words, folder, environment = json.loads(said)
    stage = os.fork()
    if stage == 0:
        client.close()
        os._exit(run(words, folder, environment, files))
    while True:
        ended, status = os.waitpid(stage, os.WNOHANG)
        if ended:
            client.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
            return 0
        if select.select([client], [], [], 0.02)[0]:
            os.kill(stage, signal.SIGKILL)


def run(words: list[str], folder: str, environment: dict[str, str], files: list[int]) -> int:
    """Be the stage: its words, folder, environment and files."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww"))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.path[0] = folder
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
