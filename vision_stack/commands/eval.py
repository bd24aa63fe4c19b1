"""Evaluate: `vision-stack eval checkpoint=PATH [data.root=DIR] [run_dir=DIR]` prints AP, PQ or mIoU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from vision_stack.commands.arguments import open_group, refuse_training_run
from vision_stack.commands.composing import Composition
from vision_stack.commands.launch import instantiate_all, launch


def main(argv: Sequence[str]) -> int:
    """Rebuild model and data from the checkpoint, evaluate; the exit code."""
    return launch("eval", lambda words: Composition("eval", open_group(words.options, "data")), run, argv)


def run(config: dict[str, Any], run_dir: Path, _: Sequence[str] = ()) -> None:
    """One evaluation; a sweep makes several."""
    refuse_training_run(run_dir)
    from vision_stack.training.evaluation import evaluate

    loggers = instantiate_all(config, "logger")

    def make_trainer() -> Any:
        return instantiate(config["trainer"], _convert_="all", logger=loggers, default_root_dir=str(run_dir))

    evaluate(config, run_dir, make_trainer)
