"""Runs a stage under FSDP on a machine without GPUs, between `accelerate launch --config_file …` and the stage's name.

accelerate makes FSDP of several processes only where they are a GPU's; gloo could do it too.
"""

import runpy
import sys
from typing import Any

from accelerate import PartialState, state
from accelerate.utils import DistributedType


def main() -> None:
    """Run the module that the first word names with the other words."""
    init = state.AcceleratorState.__init__

    def as_on_gpus(self: state.AcceleratorState, *words: Any, **options: Any) -> None:
        if not state.AcceleratorState._shared_state:
            found = PartialState(cpu=True)
            if found.distributed_type is DistributedType.MULTI_CPU:
                found.distributed_type = DistributedType.MULTI_GPU
        init(self, *words, **options)

    state.AcceleratorState.__init__ = as_on_gpus  # type: ignore[method-assign]
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
