"""Train: `vision-stack train [data=coco data.root=DIR] [backbone=swin_tiny] [experiment=NAME] [run_dir=DIR] ...`"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from vision_stack.commands.arguments import refuse_finished_run
from vision_stack.commands.launch import instantiate_all, launch
from vision_stack.commands.stored_options import train_composition


def main(argv: Sequence[str]) -> int:
    """Compose the options, import the user's plugins, build, fit; the exit code."""
    return launch("train", lambda words: train_composition(words.options, one_run=words.one_run), run, argv)


def run(config: dict[str, Any], run_dir: Path, overrides: Sequence[str]) -> None:
    """One run; a sweep makes several."""
    refuse_finished_run(run_dir, config["resume"])
    from vision_stack.training.run import train

    loggers, mine = instantiate_all(config, "logger"), instantiate_all(config, "callbacks")  # before data are read

    def make_trainer(callbacks: list[Any], trainer: Mapping[str, Any]) -> Any:
        options = {"callbacks": [*callbacks, *mine], "logger": loggers, "default_root_dir": str(run_dir)}
        return instantiate(trainer, _convert_="all", **options)

    train(config, run_dir, make_trainer, overrides)
