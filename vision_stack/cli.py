"""What a script needs around its configuration: paths that work as typed, and errors that take one line.

Pure Python, so that it can run before anything heavy is imported.
"""

from __future__ import annotations

import ast
import errno
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

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

    Without it `data.root=/photos/set 1, (a=b)` is a syntax error, a sweep or a dict. A value that stands in quotes of
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
    """Let `data.root=DIR` override what a checkpoint says: such keys stand in no yaml, and are checked later.

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
    """`resume=` without `run_dir=` goes on in the folder of the run it resumes; `resume=auto` finds its checkpoint.

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
            f"run_dir: {run_dir} holds a run, which would be replaced; go on with it by run_dir={run_dir} resume=auto, "
            "or give another run_dir"
        )


def train_arguments(argv: Sequence[str]) -> list[str]:
    """The command line of train.py with all that follows from it.

    Raises:
        ValueError: what `resume` or `run_dir` says does not fit what is there.
    """
    values = _values(argv)
    flags = any(argument.startswith("-") for argument in argv)  # --help and --cfg write nothing, -m into other folders
    if "run_dir" in values and not flags:  # before Hydra writes into it
        refuse_finished_run(Path(values["run_dir"]).expanduser(), _resume(values))
    return recipe_for_weights(choose_stages_anew(continue_in_run_dir(argv)))


def recipe_for_weights(argv: Sequence[str]) -> list[str]:
    """`weights=` of a trained model and data of one's own, without `experiment=`: that of fine-tuning."""
    values = _values(argv)
    given = values.get("weights", "").lower() not in PLAIN_WORDS
    if given and values.get("data", "shapes") != "shapes" and "experiment" not in values:
        return [*argv, f"experiment={WEIGHTS_RECIPE}"]
    return list(argv)


def import_plugins(names: str | Sequence[str]) -> None:
    """Import modules of the user's own, one or several, which register parts.

    Raises:
        ValueError: there is no such module, or this is no list of names.
    """
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"plugins: expected a list of modules, plugins=[my_parts], got {names!r}")
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and imports something that is not
            raise ValueError(f"plugins: no module {name} in {os.getcwd()}, nor among what is installed") from None


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
    """What to go on with; None for a new run."""
    resume = values.get("resume", "")
    return None if resume.lower() in PLAIN_WORDS - {"auto"} else resume


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


class OneLineErrors:
    """Prints errors that are the user's to mend as one line, others with their traceback; entered as often as needed.

    Within a sweep's job it lets the other jobs go on. `HYDRA_FULL_ERROR=1` or `VISION_STACK_DEBUG=1` shows all
    tracebacks.

    Attributes:
        exit_code: 0 without errors, 2 after one of the user's, 1 after another.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self.tracebacks = os.environ.get("VISION_STACK_DEBUG", os.environ.get("HYDRA_FULL_ERROR")) == "1"
        os.environ["VISION_STACK_DEBUG"] = str(int(self.tracebacks))  # processes started from here do the same
        os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors in its own way, before they come here

    def __enter__(self) -> OneLineErrors:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback_: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        if is_for_user(error) and not self.tracebacks:
            print(f"error: {one_line(error)}", file=sys.stderr)
            self.exit_code = self.exit_code or 2
        else:
            traceback.print_exception(error)
            self.exit_code = 1
        return True


def is_for_user(error: BaseException) -> bool:
    """Configuration errors, and ValueErrors that this package raised itself, as opposed to some library's."""
    module = type(error).__module__.partition(".")[0]
    if module in ("hydra", "omegaconf", "vision_stack") or type(error).__name__ == "MisconfigurationException":
        return True
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    if isinstance(error, OSError) and error.errno in _OS_ADVICE:
        return True
    return isinstance(error, ValueError | ModuleNotFoundError) and _raised_by(error.__traceback__).startswith(
        ("vision_stack", "__main__", "importlib")
    )


def _raised_by(tb: TracebackType | None) -> str:
    name = ""
    while tb is not None:
        name = tb.tb_frame.f_globals.get("__name__", "")
        tb = tb.tb_next
    return name


def one_line(error: BaseException) -> str:
    """The message on one line. Hydra's are rewritten, since they tell what it did rather than what to do."""
    message = str(error).strip() or type(error).__name__
    if type(error).__name__ == "DataError":
        return message  # complete as it is: a line per broken record
    for pattern, rewrite in _HYDRA_MESSAGES:
        if match := re.search(pattern, message, re.DOTALL):
            return rewrite(match)
    if isinstance(error, OSError) and error.errno in _OS_ADVICE:
        message = f"{message}; {_OS_ADVICE[error.errno]}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return "; ".join(line for line in lines if not line.startswith(("full_key:", "object_type=", "See https:")))


_OS_ADVICE = {  # what stands in the way of writing -> what to do
    errno.EEXIST: "this is no folder; give another run_dir",
    errno.ENOTDIR: "give another run_dir",
    errno.EROFS: "give a run_dir that can be written to",
    errno.ENOSPC: "make room, or give another run_dir",
    errno.EDQUOT: "make room, or give another run_dir",
}


def _no_such_choice(match: re.Match[str]) -> str:
    group, _, name = match["choice"].rpartition("/")
    names = match["names"].split()
    return f"{group}={name}: there is no such {group or 'config'}; choose one of: {', '.join(names)}"


ELSEWHERE = {  # how others call an option, or where one looks for it -> where it is
    "freeze_stages": "finetune.freeze_stages",
    "frozen_stages": "finetune.freeze_stages",
    "freeze_at": "finetune.freeze_stages",
    "freeze": "finetune.freeze_stages",
    "freeze_backbone": "finetune.freeze_stages=all",
    "unfreeze_epochs": "finetune.unfreeze_epochs",
    "unfreeze_at_epoch": "finetune.unfreeze_epochs",
    "gradient_checkpointing": "finetune.gradient_checkpointing",
    "grad_checkpointing": "finetune.gradient_checkpointing",
    "with_cp": "finetune.gradient_checkpointing",
    "freeze_norm": "backbone.freeze_norm",
    "norm_eval": "backbone.freeze_norm",
    "drop_path": "backbone.drop_path_rate",
    "lr_multiplier": "optim.backbone_lr_multiplier",
    "backbone_lr_multiplier": "optim.backbone_lr_multiplier",
    "lr_mult": "optim.backbone_lr_multiplier",
    "layer_decay": "optim.layer_decay",
    "overfit_batches": "experiment=overfit, or data.max_train_images",
    "layerwise_decay": "optim.layer_decay",
}


def _no_such_option(match: re.Match[str]) -> str:
    place = ELSEWHERE.get(match["key"].rpartition(".")[2])
    advice = f"did you mean {place}?" if place and place != match["key"] else "--cfg=job prints all of them"
    return f"{match['key']}: there is no such option; {advice}"


def _from_lightning(match: re.Match[str]) -> str:
    try:
        text = str(ast.literal_eval(match["text"]))
    except (SyntaxError, ValueError):  # an exception of several arguments, or of none
        text = match["text"]
    return f"trainer: {' '.join(text.split())}"


_HYDRA_MESSAGES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (
        r"Could not find '(?P<choice>[^']+)'\s+Available options in '[^']*':(?P<names>.*?)(?:Config search path|$)",
        _no_such_choice,
    ),
    (
        r"Could not override '(?P<key>[^']+)'\. No match in the defaults list",
        lambda m: f"{m['key']}: there is no such group of options; --help shows them",
    ),
    (
        r"Could not override '(?P<key>[^']+)'",
        _no_such_option,
    ),
    (
        r"(?:Missing mandatory value|MissingMandatoryValue): (?P<key>\S+)",
        lambda m: f"{m['key']}: missing; give {m['key']}=...",
    ),
    (r"Error in call to target '[\w.]+\.Trainer':\s*\w+\((?P<text>.*?)\)(?:\s*full_key: \S*)?\s*$", _from_lightning),
)
