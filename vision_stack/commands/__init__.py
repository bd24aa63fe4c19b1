"""The command `vision-stack VERB ...`: one module a verb, imported only when its verb is typed."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

VERBS = {
    "train": "train a model on generated scenes or on your own data",
    "eval": "evaluate a checkpoint: AP, PQ or mIoU",
    "predict": "predict on images: pictures and predictions.json",
    "doctor": "examine a data set: broken records, duplicates, leaks, small objects; a page of HTML",
    "profile": "measure whether training waits for data or for the model",
    "show": "write a picture of training images before and after augmentation",
    "backbones": "list the backbones",
    "models": "list published models that weights= takes",
    "to-transformers": "write a model as a directory that transformers loads",
    "to-torchvision": "write a detector as a state dict that torchvision loads",
}
# Lightning starts the other processes of a run with the words after the verb; they find the verb here.
_VERB = "VISION_STACK_VERB"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code.

    Args:
        argv: the verb and its options; what was typed if None.
    """
    with _ending_on_signals():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    if argv and argv[0] in ("-sc", "--shell-completion") and "COMP_LINE" in os.environ:
        typed = os.environ["COMP_LINE"].split(" ")
        if len(typed) < 3 or typed[1] not in VERBS:
            print(" ".join(VERBS))
            return 0
        verb = typed.pop(1)
        os.environ["COMP_LINE"] = " ".join(typed)  # Hydra completes what follows the verb
    elif argv and argv[0] in VERBS:
        verb, *argv = argv
    elif argv[:1] in ([], ["-h"], ["--help"]):
        print(_usage())
        return 0
    elif argv[0] == "--version":
        print(_version())
        return 0
    elif _VERB in os.environ:
        verb = os.environ[_VERB]
    else:
        print(f"error: {_not_a_verb(argv)}", file=sys.stderr)
        return 2
    if "--version" in argv:
        print(_version())
        return 0
    os.environ[_VERB] = verb
    return importlib.import_module(f"vision_stack.commands.{verb.replace('-', '_')}").main(argv)


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the process with one line while nothing has been imported yet that can do it better."""

    def end(signum: int, _: FrameType | None) -> None:
        os.write(2, f"stopped by {signal.Signals(signum).name}\n".encode())
        os._exit(128 + signum)

    defaults: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    in_main_thread = threading.current_thread() is threading.main_thread()
    mine = [signum for signum, default in defaults.items() if in_main_thread and signal.getsignal(signum) == default]
    for signum in mine:
        signal.signal(signum, end)
    try:
        yield
    finally:
        for signum in mine:
            signal.signal(signum, defaults[signum])


def _not_a_verb(argv: Sequence[str]) -> str:
    from vision_stack.commands.aliases import VERBS_ELSEWHERE

    word = argv[0]
    if "=" in word or word.startswith("-"):
        return f"{word}: no command was given; write vision-stack train {shlex.join(argv)}"
    close = difflib.get_close_matches(word.lower(), [*VERBS, *VERBS_ELSEWHERE], n=1, cutoff=0.6)
    if close:
        return f"{word} is not a command; did you mean {VERBS_ELSEWHERE.get(close[0], close[0])}?"
    return f"{word} is not a command; choose one of: {', '.join(VERBS)}"


def _version() -> str:
    return f"vision-stack {importlib.import_module('vision_stack').__version__}"


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()]
    return "\n".join(
        ["usage: vision-stack COMMAND [OPTIONS]", "", *lines, "", "vision-stack COMMAND --help explains its options."]
    )
