"""The options that SFT and DPO share, each declared once, in the words of params.yaml."""

from pathlib import Path
from typing import Annotated

import typer

from alignment.models import chat, loading
from alignment.runtime import command
from alignment.training import plan

LearningRate = Annotated[float, typer.Option(help="peak learning rate", callback=command.above_zero)]
Budget = Annotated[plan.Budget, typer.Option(help="what says how long training is")]
Epochs = Annotated[int, typer.Option(help="budget epochs: passes over the rows", min=1)]
Batch = Annotated[int, typer.Option(help="budget epochs: rows an optimiser step, over all devices", min=1)]
Tokens = Annotated[int, typer.Option(help="budget tokens: trained tokens of the whole run", min=1)]
Steps = Annotated[int, typer.Option(help="budget tokens: optimiser steps", min=1)]
Warmup = Annotated[float, typer.Option(help="share of steps before the peak", min=0, max=1)]
CheckpointSteps = Annotated[int, typer.Option(help="steps between checkpoints", min=1)]
GradientCheckpointing = Annotated[bool, typer.Option(help="less memory, a third more time")]
PerDeviceBatch = Annotated[int, typer.Option(help="long rows a forward pass has room for", min=1)]
Template = Annotated[chat.Template, typer.Option(help="the chat template")]
Dtype = Annotated[loading.Dtype, typer.Option(help="precision")]
Device = Annotated[loading.Device, typer.Option(help="where it is computed")]
Quantization = Annotated[loading.Quantization, typer.Option(help="of the base's weights while training")]
State = Annotated[Path, typer.Option(help="folder for checkpoints, outside the outputs")]
