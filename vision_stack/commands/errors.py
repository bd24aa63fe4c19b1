"""Errors that are the user's to fix take one line, with exit code 2; others keep their traceback."""

from __future__ import annotations

import ast
import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from vision_stack.commands.option_docs import OVERLAYS, groups
from vision_stack.commands.unknown import unknown_option
from vision_stack.config import suggest


class OneLineErrors:
    """Prints errors that the user can fix as one line, others with their traceback; entered as often as needed.

    Within a sweep's job the other jobs continue. `HYDRA_FULL_ERROR=1` or `VISION_STACK_DEBUG=1` shows all
    tracebacks.

    Attributes:
        exit_code: 0 without errors, 2 after one of the user's, 1 after another.

    Args:
        verb: of whose options messages speak.
    """

    def __init__(self, verb: str = "train") -> None:
        self.verb = verb
        self.exit_code = 0
        self.tracebacks = os.environ.get("VISION_STACK_DEBUG", os.environ.get("HYDRA_FULL_ERROR")) == "1"
        os.environ["VISION_STACK_DEBUG"] = str(int(self.tracebacks))  # processes started from here do the same
        os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors in its own way, before they come here

    def __enter__(self) -> OneLineErrors:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback_: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        if isinstance(error, BrokenPipeError):  # `... | head`: nothing more can be printed, at the exit neither
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            print("error: standard output was closed by the program that read it", file=sys.stderr)
            self.exit_code = self.exit_code or 1
            return True
        if is_for_user(error) and not self.tracebacks:
            print(f"error: {one_line(error, self.verb)}", file=sys.stderr)
            self.exit_code = self.exit_code or 2
        else:
            traceback.print_exception(error)
            self.exit_code = 1
        return True


@contextmanager
def raising_value_errors(verb: str) -> Iterator[None]:
    """For Python: errors of Hydra, OmegaConf and Lightning's trainer that the user can fix become a ValueError of one
    line. `VISION_STACK_DEBUG=1` keeps what they come from."""
    try:
        yield
    except Exception as error:
        if not _of_a_framework(error):
            raise
        cause = error if os.environ.get("VISION_STACK_DEBUG") == "1" else None
        raise ValueError(one_line(error, verb)) from cause


def _of_a_framework(error: BaseException) -> bool:
    module = type(error).__module__.partition(".")[0]
    return module in ("hydra", "omegaconf") or type(error).__name__ == "MisconfigurationException"


def is_for_user(error: BaseException) -> bool:
    """Configuration errors, and ValueErrors that this package or the trainer raised, as opposed to some library's."""
    if _of_a_framework(error) or type(error).__module__.partition(".")[0] == "vision_stack":
        return True
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return True
    if isinstance(error, OSError) and error.errno in _OS_ADVICE:
        return True
    return isinstance(error, ValueError | ModuleNotFoundError) and _raised_by(error.__traceback__).startswith(
        ("vision_stack", "__main__", "importlib", "pytorch_lightning")
    )


def _raised_by(tb: TracebackType | None) -> str:
    name = ""
    while tb is not None:
        name = tb.tb_frame.f_globals.get("__name__", "")
        tb = tb.tb_next
    return name


def one_line(error: BaseException, verb: str = "train") -> str:
    """The message on one line. Hydra's are rewritten, since they tell what it did rather than what to do."""
    message = str(error).strip() or type(error).__name__
    if type(error).__name__ == "DataError":
        return message  # complete as it is: a line per broken record
    for pattern, rewrite in _MESSAGES:
        if match := re.search(pattern, message, re.DOTALL):
            return rewrite(match, verb)
    if _raised_by(error.__traceback__).startswith("pytorch_lightning"):
        message = f"trainer: {message}"
    if isinstance(error, OSError) and error.errno in _OS_ADVICE:
        message = f"{message}; {_OS_ADVICE[error.errno]}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return "; ".join(line for line in lines if not line.startswith(("full_key:", "object_type=", "See https:")))


_OS_ADVICE = {  # what prevents writing -> what to do
    errno.EEXIST: "this is not a folder; give another run_dir",
    errno.ENOTDIR: "give another run_dir",
    errno.EROFS: "give a run_dir that can be written to",
    errno.ENOSPC: "make room, or give another run_dir",
    errno.EDQUOT: "make room, or give another run_dir",
}


def _no_such_choice(match: re.Match[str], _: str) -> str:
    group, _, name = match["choice"].partition("/")
    if group not in (*groups(), *OVERLAYS):  # one of Hydra's
        group, _, name = match["choice"].rpartition("/")
    if group == "backbone" and not difflib.get_close_matches(name, match["names"].split(), n=1, cutoff=0.6):
        return (
            f"unknown backbone {name!r}; `vision-stack backbones` lists them, "
            f"backbone=timm backbone.model_name={name} takes any of timm's"
        )
    return f"unknown {group or 'config'} {name!r}; {suggest(name, match['names'].split())}"


def _from_a_call(match: re.Match[str], _: str) -> str:
    """What a class that a yaml names reported about its arguments."""
    try:
        text = str(ast.literal_eval(match["text"]))
    except (SyntaxError, ValueError):  # an exception of several arguments, or of none
        text = match["text"]
    text = " ".join(text.split())
    name = match["target"].rpartition(".")[2]
    place = "trainer" if name == "Trainer" else match["key"] or name
    if missing := re.match(r"(?:Requirement|No module named) '(?P<package>[\w.-]+)", text):
        return f"{place}: needs a package that is not installed; pip install {missing['package']}"
    if re.match(r"[\w.]+: ", text):
        return text  # names its option
    return f"{place}: {text}"


_MESSAGES: tuple[tuple[str, Callable[[re.Match[str], str], str]], ...] = (
    (
        r"No supported gpu backend found",
        lambda _, verb: "device: PyTorch finds no GPU here; give device=cpu, or install a PyTorch build for your GPU",
    ),
    (
        r"Could not find '(?P<choice>[^']+)'\s+Available options in '[^']*':(?P<names>.*?)(?:Config search path|$)",
        _no_such_choice,
    ),
    (
        r"Could not override '(?P<key>[^']+)'\. No match in the defaults list",
        lambda m, verb: unknown_option(verb, m["key"]),
    ),
    (
        r"Could not override '(?P<key>[^']+)'",
        lambda m, verb: unknown_option(verb, m["key"]),
    ),
    (
        r"(?:Missing mandatory value|MissingMandatoryValue): (?P<key>\S+)",
        lambda m, _: f"{m['key']}: missing; give {m['key']}=...",
    ),
    (
        r"Error in call to target '(?P<target>[\w.]+)':\s*\w+\((?P<text>.*?)\)(?:\s*full_key: (?P<key>\S*))?\s*$",
        _from_a_call,
    ),
    (
        r"Error merging override (?P<key>[\w.]+)=(?P<value>.*)",
        lambda m, _: f"{m['key']}: {m['value']} is not of the right kind; --help shows what {m['key']} takes",
    ),
    (
        r"Error locating target '(?P<target>[^']*)'",
        lambda m, _: f"_target_={m['target']}: cannot be imported; check the name and that its package is installed",
    ),
    (
        r"Interpolation key '(?P<name>[^']*)' not found(?:.*?full_key: (?P<key>\S+))?",
        lambda m, _: (
            f"{m['key'] or 'an option'}: ${{{m['name']}}} is not an option; name one with its groups (optim.lr)"
        ),
    ),
    (
        r"Recursive interpolation detected.*?(?:full_key: (?P<key>\S+))",
        lambda m, _: f"{m['key']}: refers to itself through ${{...}}; give a value",
    ),
)
