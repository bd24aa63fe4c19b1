"""What was typed, before Hydra parses it: paths work as typed, `resume=` finds its run.

Pure Python, so that it can run before anything heavy is imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

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
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"

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

    Two grammars read it. OmegaConf's, second, takes `${` for an interpolation unless a backslash stands before it, and
    halves the backslashes in front of one. Hydra's, first, ends the string at a quote, and halves the backslashes in
    front of one.
    """
    if "${" in value:
        value = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", value)
    value = re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", value)
    return "'" + re.sub(r"\\+$", lambda m: m[0] * 2, value) + "'"


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
    keys = {_key(argument) for argument in argv}
    if not keys & STAGE_KEYS:
        return list(argv)
    return [*argv, *(f"{key}=null" for key in sorted(STAGE_KEYS - keys))]


def continue_in_run_dir(argv: Sequence[str], outputs: str | Path = "outputs") -> list[str]:
    """`resume=` without `run_dir=` continues in the folder of the run it resumes; `resume=auto` finds its checkpoint.

    Raises:
        ValueError: `resume=auto` and there is no run to resume.
    """
    values = _values(argv)
    resume = _resume(values)
    if resume is None:
        return list(argv)
    run_dir = Path(values["run_dir"]).expanduser() if "run_dir" in values else None
    if resume == "auto":
        checkpoint = run_dir / LAST_CHECKPOINT if run_dir else newest_checkpoint(outputs)
        if checkpoint is None or not checkpoint.is_file():
            where = run_dir / LAST_CHECKPOINT if run_dir else f"{outputs}/**/{LAST_CHECKPOINT}"
            raise ValueError(f"resume=auto: there is no {where}; give resume=PATH, or leave it out to start a new run")
        argv = [f"resume={checkpoint}" if _key(a) == "resume" else a for a in argv]
    else:
        checkpoint = Path(resume).expanduser()
    checkpoint = checkpoint.absolute()  # its parent may not be named
    if run_dir is None and checkpoint.parent.name == LAST_CHECKPOINT.parent.name:
        argv = [*argv, f"run_dir={checkpoint.parent.parent}"]
    return list(argv)


def refuse_finished_run(run_dir: Path, resume: str | None) -> None:
    """Raise ValueError if a new run would replace the checkpoints of another one."""
    if resume is None and (run_dir / LAST_CHECKPOINT).exists():
        raise ValueError(
            f"run_dir: {run_dir} already contains a run that would be overwritten; resume it with run_dir={run_dir} "
            "resume=auto, or give another run_dir"
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
    values = _values(argv)
    if "run_dir" in values and one_run:  # before Hydra writes into it
        refuse_finished_run(Path(values["run_dir"]).expanduser(), _resume(values))
    return backbone_for_own_data(recipe_for_weights(choose_stages_anew(continue_in_run_dir(argv))))


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


def newest_checkpoint(outputs: str | Path) -> Path | None:
    """The `last.ckpt` written last among all runs below a folder."""
    found = list(Path(outputs).glob(f"**/{LAST_CHECKPOINT.as_posix()}"))
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _key(argument: str) -> str:
    match = _OVERRIDE.fullmatch(argument)
    return match["key"].lstrip("+") if match else ""


def _values(argv: Sequence[str]) -> dict[str, str]:
    return {m["key"].lstrip("+"): _unquoted(m["value"]) for a in argv if (m := _OVERRIDE.fullmatch(a))}


def _resume(values: Mapping[str, str]) -> str | None:
    """What to resume; None for a new run."""
    resume = values.get("resume", "")
    return None if resume.lower() in PLAIN_WORDS - {"auto"} else resume


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
