"""Predict: `vision-stack predict checkpoint=PATH source=FILE|DIR|GLOB [threshold=0.5] [run_dir=DIR]`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_stack.commands.arguments import refuse_training_run
from vision_stack.commands.composing import Composition
from vision_stack.commands.launch import launch


def main(argv: Sequence[str]) -> int:
    """Load the checkpoint's model, go through the images; the exit code."""
    return launch("predict", lambda words: Composition("predict", words.options), run, argv)


def run(config: dict[str, Any], run_dir: Path, _: Sequence[str] = ()) -> None:
    """One set of images; a sweep makes several."""
    refuse_training_run(run_dir)
    from vision_stack.training.prediction import predict

    predict(config, run_dir)
