"""Where the benchmarks and the safety sentences come from: repositories, revisions, files.

Revisions were read in public code. A training set's pin stands in its own file of `alignment/corpora/`.
"""

import re

from alignment.corpora import UNSTATED, Repository
from alignment.runtime import Refused

BENCHMARKS = {
    "arc_challenge": Repository(
        "allenai/ai2_arc",
        "210d026faf9955653af8916fad021475a3f00453",
        ("ARC-Challenge/test-*.parquet", "ARC-Challenge/validation-*.parquet"),
        "CC-BY-SA-4.0",
    ),
    "piqa": Repository(
        "baber/piqa", "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1", ("piqa_validation.parquet",), "AFL-3.0"
    ),
    "hellaswag": Repository(
        "Rowan/hellaswag", "218ec52e09a7e7462a5400043bb9a69a41d06b76", ("data/validation-*.parquet",), "MIT"
    ),
    "mmlu": Repository(
        "cais/mmlu",
        "c30699e8356da336a370243923dbaf21066bb9fe",
        ("*/test-*.parquet", "*/dev-*.parquet"),
        "MIT",
        ignore=("all/*", "auxiliary_train/*"),  # the 57 subjects once more, and a training set
    ),
    "toxigen": Repository(
        "toxigen/toxigen-data",
        "de75e584563650aa4552f73968d89a04393f7bcb",
        ("annotated/test-*.parquet",),
        UNSTATED,
        gated=True,
    ),
    "truthfulqa_mc2": Repository(
        "truthfulqa/truthful_qa",
        "741b8276f2d1982aa3d5b832d3ee81ed3b896490",
        ("multiple_choice/validation-*.parquet",),
        "Apache-2.0",
    ),
}

SAFETY = Repository(
    "microsoft/SafeNLP",
    "e351b6cb892284cf843b88e363b1a6dbaded584e",
    ("data/toxiGen.json",),
    "MIT; ToxiGen: MIT and CDLA-Permissive-2.0",
    host="github",
    stated={"data/toxiGen.json": (1_661_792, "42863b997f545833b8c9bfe7fc950aeaccc274d49f7386384db147face745fc3")},
)


def more(entries: str) -> dict[str, Repository]:
    """Parse the benchmarks that a user names, by task.

    Entries have the form `task=owner/name@revision:files` and are separated by spaces.

    Raises:
        Refused: an entry has another form, or names a benchmark that is pinned here, or one task twice.
    """
    found: dict[str, Repository] = {}
    for entry in entries.split():
        match = re.fullmatch(r"(\w+)=([\w.-]+/[\w.-]+)@(\w+):(\S+)", entry)
        if not match or match[1] in BENCHMARKS:
            raise Refused(
                f"the entry {entry!r} in `more_benchmarks` of params.yaml cannot be used; wanted a task of lm-eval "
                f"besides {', '.join(BENCHMARKS)}, as task=owner/name@revision:files-of-its-scored-split"
            )
        task, name, revision, pattern = match.groups()
        if task in found:
            raise Refused(
                f"`more_benchmarks` in params.yaml has {task} twice, wanted one entry a task; a pattern with * names "
                "several files of its scored split"
            )
        found[task] = Repository(name, revision, (pattern,), UNSTATED)
    return found
