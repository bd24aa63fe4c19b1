"""What was typed, before Hydra parses it: paths work as typed, `resume=` finds its run.

Imports nothing heavy.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from vision_stack.ops.run_files import LAST_CHECKPOINT, Finished, read_finished

PATH_KEYS = frozenset(
    {
        "run_dir",
        "resume",
        "weights",
        "checkpoint",
        "source",
        "backbone.pretrained",
        "data.root",
        "data.train_annotations",
        "data.train_images",
        "data.train_labels",
        "data.val_annotations",
        "data.val_images",
        "data.val_labels",
        "data.classes",
    }
)
# Three ways to choose the same stages.
STAGE_KEYS = frozenset({"backbone.out_features", "backbone.out_indices", "backbone.out_strides"})
PLAIN_WORDS = frozenset({"", "null", "true", "false", "auto"})  # options that take a path take these, too
WEIGHTS_RECIPE = "from_weights"

_OVERRIDE = re.compile(r"(?P<key>\+{0,2}[\w.@/]+)=(?P<value>.*)", re.DOTALL)


def quote_paths(argv: Sequence[str]) -> list[str]:
    """Quote the values of options that take a path, so that Hydra takes each character literally.

    Without it `data.root=/photos/set 1, (a=b)` is a syntax error, a sweep or a dict. A value within quotes of
    its own is left to Hydra's grammar. A leading `~` is the home directory, which no shell expands there.
    """
    return [_quote(argument) for argument in argv]


def _quote(argument: str) -> str:
    match = _OVERRIDE.fullmatch(argument)
    if match is None or match["key"].lstrip("+") not in PATH_KEYS:
        return argument
    key, value = match["key"], match["value"]
    if value.lower() in PLAIN_WORDS or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return argument
    if value.startswith("~"):
        value = os.path.expanduser(value)
    return f"{key}={quote(value)}"


def quote(value: str) -> str:
    """A Hydra string that stands for exactly these characters: no interpolation, no escapes.

    Two grammars read it. OmegaConf's is the second (`literal`). Hydra's, the first, ends the string at a quote, and
    halves the backslashes in front of one.
    """
    value = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", literal(value))
    return "'" + re.sub(r"\\+$", lambda m: m[0] * 2, value) + "'"


def literal(value: str) -> str:
    """A string that OmegaConf takes as it is: it takes `${` for an interpolation unless a backslash stands before it,
    and halves the backslashes in front of one."""
    return re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", value)


def open_group(argv: Sequence[str], group: str) -> list[str]:
    """Let `data.root=DIR` override what a checkpoint says: no yaml lists such keys; they are checked later.

    `data=coco`, as typed for train.py, is `data.type=coco`.
    """
    argv = [re.sub(rf"^\+{{0,2}}{group}=(?=\w)(?!null$)", f"{group}.type=", a) for a in argv]
    return [f"++{a}" if a.startswith(f"{group}.") else a for a in argv]


def choose_stages_anew(argv: Sequence[str]) -> list[str]:
    """`backbone.out_indices=[1,2]` means just these stages: what the yaml chooses by name or stride is set to null.

    Two selections on the command line stay, and must mean the same stages, as in Python.
    """
    keys = {option_key(argument) for argument in argv}
    if not keys & STAGE_KEYS:
        return list(argv)
    return [*argv, *(f"{key}=null" for key in sorted(STAGE_KEYS - keys))]


def continue_in_run_dir(argv: Sequence[str], outputs: str | Path = "outputs") -> list[str]:
    """`resume=` without `run_dir=` continues in the folder of the run it resumes.

    `resume=auto` finds the newest interrupted run; a run's folder stands for its `last.ckpt`.

    Raises:
        ValueError: there is nothing to resume, or the run is complete and nothing asks for a longer one; one line.
    """
    values = _values(argv)
    resume = _resume(values)
    if resume is None:
        return list(argv)
    run_dir = Path(values["run_dir"]).expanduser() if "run_dir" in values else None
    checkpoint = _interrupted(run_dir, Path(outputs)) if resume == "auto" else Path(resume).expanduser()
    if checkpoint.is_dir():
        checkpoint /= LAST_CHECKPOINT
    argv = [f"resume={checkpoint}" if option_key(a) == "resume" else a for a in argv]
    run = run_of(checkpoint)
    if run is not None:
        finished = read_finished(run)
        if finished and not _is_longer(values, finished):
            raise ValueError(f"resume: {run} is finished ({finished}); {_how_to_extend(run)}")
        if run_dir is None:
            argv = [*argv, f"run_dir={run}"]
    return list(argv)


def _interrupted(run_dir: Path | None, outputs: Path) -> Path:
    """The `last.ckpt` of the newest run that is not complete; with `run_dir`, of that one."""
    if run_dir:
        if not (run_dir / LAST_CHECKPOINT).is_file():
            raise ValueError(
                f"resume=auto: there is no {run_dir / LAST_CHECKPOINT}; leave resume out to start a new run there"
            )
        return run_dir / LAST_CHECKPOINT
    found = sorted(outputs.glob(f"**/{LAST_CHECKPOINT.as_posix()}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ValueError(
            f"resume=auto: there is no {outputs}/**/{LAST_CHECKPOINT}; give resume=PATH, or leave it out to start a "
            "new run"
        )
    interrupted = [path for path in found if read_finished(path.parents[1]) is None]
    if not interrupted:
        newest = found[-1].parents[1]
        raise ValueError(
            f"resume=auto: no run in {outputs} is unfinished; the newest, {newest}, has done "
            f"{read_finished(newest)}; {_how_to_extend(newest)}"
        )
    return interrupted[-1]


def _how_to_extend(run: Path) -> str:
    return f"to train it longer give resume={shlex.quote(str(run / LAST_CHECKPOINT))} with epochs=N or max_steps=N"


def _is_longer(values: Mapping[str, str], finished: Finished) -> bool:
    """Whether more is asked for than a complete run has done."""
    done = {"trainer.max_epochs": finished.epochs, "trainer.max_steps": finished.steps}
    wanted = [(values[key], count) for key, count in done.items() if key in values]
    return "trainer.max_time" in values or any(not text.isdecimal() or int(text) > count for text, count in wanted)


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint is in; None for one that was taken out."""
    folder = checkpoint.absolute().parent  # its name may not be in the path
    return folder.parent if folder.name == LAST_CHECKPOINT.parent.name else None


def resumed_checkpoint(argv: Sequence[str]) -> Path | None:
    """The file that is resumed, of options in which `continue_in_run_dir` has found it; None for a new run."""
    resume = _resume(_values(argv))
    return Path(resume).expanduser() if resume else None


def refuse_finished_run(run_dir: Path, resume: str | None) -> None:
    """Raise ValueError if a run would replace the checkpoints of another one."""
    if not (run_dir / LAST_CHECKPOINT).exists():
        return
    run = run_of(Path(resume).expanduser()) if resume else None
    if run is None or run.resolve() != run_dir.resolve():
        finished = read_finished(run_dir)
        extend = _how_to_extend(run_dir) if finished else f"to resume it give run_dir={run_dir} resume=auto"
        raise ValueError(
            f"run_dir: {run_dir} already contains a run that would be overwritten; {extend}; for a new run, give "
            "another run_dir"
        )


def refuse_training_run(run_dir: Path | None) -> None:
    """Raise ValueError if results of evaluation or prediction would replace those of a training run."""
    if run_dir is not None and (run_dir / LAST_CHECKPOINT).exists():
        raise ValueError(
            f"run_dir: {run_dir} contains a training run, whose config.yaml and predictions.json would be overwritten; "
            "give another run_dir"
        )


def typed_run_dir(argv: Sequence[str]) -> Path | None:
    """The folder that was named to write into."""
    values = _values(argv)
    text = values.get("run_dir", values.get("hydra.run.dir"))
    return Path(text).expanduser() if text else None


def train_arguments(argv: Sequence[str], *, one_run: bool = True) -> list[str]:
    """The options of a training with all that follows from them.

    Args:
        argv: `option=value`, as typed.
        one_run: False for a sweep, which writes into folders below `run_dir`, and where nothing is trained.

    Raises:
        ValueError: what `resume` or `run_dir` says does not fit what is there.
    """
    argv = continue_in_run_dir(argv)
    run_dir = typed_run_dir(argv)
    if run_dir and one_run:  # before Hydra writes into it
        refuse_finished_run(run_dir, _resume(_values(argv)))
    return backbone_for_own_data(recipe_for_weights(choose_stages_anew(argv)))


def recipe_for_weights(argv: Sequence[str]) -> list[str]:
    """`weights=` of a trained model and data of one's own, without `experiment=`: that of fine-tuning."""
    values = _values(argv)
    given = values.get("weights", "").lower() not in PLAIN_WORDS
    if given and values.get("data", "shapes") != "shapes" and "experiment" not in values:
        return [*argv, f"experiment={WEIGHTS_RECIPE}"]
    return list(argv)


def backbone_for_own_data(argv: Sequence[str]) -> list[str]:
    """Data of one's own, and no word on the model: a pretrained backbone, which `model_name: auto` chooses."""
    values = _values(argv)
    own_data = values.get("data", "shapes") != "shapes" and "," not in values["data"]
    if own_data and not values.keys() & {"backbone", "weights", "experiment"}:
        return ["backbone=timm", "backbone.model_name=auto", *argv]
    return list(argv)


def option_key(argument: str) -> str:
    """What `option=value` sets, without `+`; empty for other words."""
    match = _OVERRIDE.fullmatch(argument)
    return match["key"].lstrip("+") if match else ""


def _values(argv: Sequence[str]) -> dict[str, str]:
    return {m["key"].lstrip("+"): _unquoted(m["value"]) for a in argv if (m := _OVERRIDE.fullmatch(a))}


def _resume(values: Mapping[str, str]) -> str | None:
    """What to resume; None for a new run."""
    resume = values.get("resume", "")
    if resume.lower() in ("auto", "true"):
        return "auto"
    return None if resume.lower() in PLAIN_WORDS else resume


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
