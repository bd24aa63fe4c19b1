"""What train, eval and predict share: from what was typed to a composed config and a folder to write into."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from vision_stack.commands.arguments import quote_paths, refuse_training_run, typed_run_dir
from vision_stack.commands.composing import Composition, check_experiment, plain_options
from vision_stack.commands.errors import OneLineErrors
from vision_stack.commands.plugins import import_plugins, offer_plugins
from vision_stack.commands.run_folders import hold, note_new, remove_unused
from vision_stack.commands.words import Words, understand
from vision_stack.config import config_dir
from vision_stack.ops.files import naming
from vision_stack.training.interrupts import Stopped, stopping_on_signals

Run = Callable[[dict[str, Any], Path, list[str]], object]


def launch(verb: str, prepare: Callable[[Words], Composition], run: Run, argv: Sequence[str]) -> int:
    """Compose what was typed, and run; a sweep (-m) runs several times.

    Args:
        verb: train, eval or predict.
        prepare: what was typed -> the config and the options on top, with all that follows from them.
        run: takes the plain options, the folder to write into, and the options as typed.
        argv: what was typed after the verb.

    Returns:
        The exit code: 2 after an error of the user's, 1 after another, 130 after Ctrl-C, 143 after SIGTERM.
    """
    errors = OneLineErrors(verb)

    def job(config: DictConfig) -> None:
        with errors, stopping_on_signals():
            config.run_dir = HydraConfig.get().runtime.output_dir  # a sweep's job has a folder of its own
            plain = plain_options(config, HydraConfig.get(), complete=True)
            check_experiment(HydraConfig.get())
            run_dir = Path(HydraConfig.get().runtime.output_dir)
            hold(run_dir)
            import_plugins(plain["plugins"])
            run(plain, run_dir, list(HydraConfig.get().overrides.task))

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold what is not text
    try:
        with errors, stopping_on_signals():
            sys.path.insert(0, os.getcwd())  # for `plugins` and their yaml files, which are where the user works
            words = understand(verb, argv)
            if words.help:
                from vision_stack.commands.help import help_text

                with contextlib.suppress(BrokenPipeError):  # `--help | head`
                    print(help_text(verb, words.options, words.topics), flush=True)
                    return 0
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python fails to flush it at the exit
                return 0
            offer_plugins(words.options)
            composition = prepare(words)
            run_dir = typed_run_dir(composition.options)
            if words.one_run and run_dir:
                if verb != "train":
                    refuse_training_run(run_dir)
                hold(run_dir)  # before Hydra writes into it
            elif run_dir:
                note_new(run_dir)
            sys.argv[1:] = [*words.flags, *quote_paths(composition.options)]
            with naming(run_dir or "outputs"):  # Hydra writes into it, and does not say where the disk is full
                main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=composition.name)
                main(job)()
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    finally:
        remove_unused()
    return errors.exit_code


def instantiate_all(config: Mapping[str, Any], group: str) -> list[Any]:
    """What the `_target_`s of a group make, callbacks or loggers; one that is null is left out."""
    made = instantiate({group: config[group]}, _convert_="all")[group]
    return [each for each in made.values() if each is not None]
