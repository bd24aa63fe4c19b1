"""The words people type: flags and short names become Hydra's `option=value`, and what cannot be meant takes one line.

`--data coco --epochs 10` is `data=coco trainer.max_epochs=10`. Imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vision_stack.commands.aliases import ALIASES, canonical, known_value
from vision_stack.commands.arguments import PATH_KEYS
from vision_stack.commands.data_words import data_options
from vision_stack.commands.option_docs import OVERLAYS, groups, known_options
from vision_stack.commands.unknown import OWN_YAML, unknown_option
from vision_stack.ops.run_files import LAST_CHECKPOINT

# fmt: off
HYDRA_FLAGS = frozenset((
    "-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-m", "--multirun", "-sc",
    "--shell-completion",
))
ONE_RUN_FLAGS = frozenset(("-r", "--run", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"))
HYDRA_FLAGS_WITH_VALUE = ONE_RUN_FLAGS - {"-r", "--run"} | frozenset((
    "-c", "--cfg", "-p", "--package", "-i", "--info", "--experimental-rerun",
))
# fmt: on
_SHOWN = {  # what flags show: the values that they take
    **dict.fromkeys(("-c", "--cfg"), ("job", "hydra", "all")),
    **dict.fromkeys(("-i", "--info"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
}
# Groups that every run needs one of.
REQUIRED_GROUPS = ("backbone", "neck", "head", "data", "optim", "trainer", "callbacks", "logger")
_KEY = re.compile(r"\+{0,2}[\w.@/-]+", re.ASCII)
_NUMBER = re.compile(r"-\d")
_EXAMPLES = {"resume": "auto", "data": "DIR", "source": "FOLDER", "checkpoint": "best.ckpt", "pretrained": "true"}
_WEIGHTS = frozenset((".ckpt", ".safetensors", ".pt", ".pth", ".bin"))


class Words(NamedTuple):
    """What was typed after a verb."""

    flags: list[str]  # Hydra's own, with their values
    options: list[str]  # option=value
    topics: tuple[str, ...] = ()  # groups and options that --help is asked about

    @property
    def help(self) -> bool:
        return bool({"-h", "--help"} & set(self.flags))

    @property
    def one_run(self) -> bool:
        """Whether one job runs, as opposed to a sweep, or to showing something."""
        flags = {flag.partition("=")[0] for flag in self.flags if flag.startswith("-")}
        return flags <= ONE_RUN_FLAGS


def understand(verb: str, argv: Sequence[str]) -> Words:
    """Flags, aliases and folders as what they stand for.

    Raises:
        ValueError: a word that can mean nothing; one line with what to write instead.
    """
    if {"-sc", "--shell-completion"} & set(argv):
        return Words(list(argv), [])
    flags, typed = _assignments(verb, argv)
    words = Words(flags, [])
    assigned = [pair for text in typed if (pair := _split(text))[1] is not None]
    data = next((value for key, value in assigned if key == "data"), None) or "shapes"
    meant: list[tuple[str, str]] = []  # what was typed, what it stands for
    topics = []
    for text in typed:
        key, value = _split(text)
        if value is None and words.help and _is_topic(verb, text):
            topics.append(text)
        elif value is None:
            _check_bare_word(verb, text)
            meant.append((text, text))
        else:
            _check(verb, text, key, value)
            meant += [(text, option) for option in _options(verb, text, data, assigned, flags)]
    _check_agreement(meant)
    return Words(flags, [option for _, option in meant], tuple(topics))


def _options(
    verb: str, text: str, data: str, assigned: Sequence[tuple[str, str | None]], flags: Sequence[str]
) -> list[str]:
    key, value = _split(text)
    bare = key.lstrip("+")
    name, value = key.removesuffix(bare) + canonical(bare), value or ""
    if alias := ALIASES[verb].get(name):
        return alias.means(value, data)
    if name == "data" and verb != "predict":
        keys = {key for key, _ in assigned}
        elsewhere = "hydra.searchpath" in keys or any(flag.startswith(("-cd", "--config-dir")) for flag in flags)
        return data_options(value, {canonical(key) for key in keys}, own_yaml=elsewhere)
    added = "++" if name == bare and _is_of_weights(verb, name, assigned) else ""
    return [f"{added}{name}={known_value(canonical(bare), value)}"]


def _is_of_weights(verb: str, name: str, assigned: Sequence[tuple[str, str | None]]) -> bool:
    """Whether an option is of a part that comes with `weights=`: not of the part that the yaml files name instead."""
    keys = {key for key, _ in assigned}
    part, dot, _ = name.partition(".")
    chosen = part in keys or part not in ("backbone", "neck", "head")
    return bool(dot) and "weights" in keys and not chosen and name in known_options(verb)


def _assignments(verb: str, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags, and all other words, flags among them as assignments: `--epochs 10` is `epochs=10`."""
    flags: list[str] = []
    typed: list[str] = []
    words = list(reversed(argv))
    while words:
        word = words.pop()
        flag, equals, value = word.partition("=")
        if flag in HYDRA_FLAGS and equals and flag != "-sc":
            raise ValueError(f"{word}: {flag} takes no value")
        if flag in HYDRA_FLAGS:
            flags.append(word)
        elif flag in HYDRA_FLAGS_WITH_VALUE:
            if flag in ("-i", "--info") and not equals and not (words and words[-1] in _SHOWN[flag]):
                words.append("all")
            value = value if equals else words.pop() if words else ""
            _check_flag(flag, value)
            flags += [word] if equals else [word, value]
        elif word.startswith("-"):
            typed.append(_assignment(verb, word, words))
        else:
            typed.append(word)
    return flags, typed


def _check_flag(flag: str, value: str) -> None:
    shown = _SHOWN.get(flag)
    if shown and value not in shown:
        raise ValueError(f"{flag} {value}".rstrip() + f": {flag} shows options: one of {', '.join(shown)}; {OWN_YAML}")
    if not value:
        raise ValueError(f"{flag}: needs a value, as in {flag} VALUE")


def _assignment(verb: str, word: str, following: list[str]) -> str:
    """A flag as `option=value`; takes its value from what follows."""
    flag, equals, value = word.partition("=")
    key = flag.lstrip("-").replace("-", "_")
    if equals:
        return f"{key}={value}"
    if key.startswith("no_") and _is_known(verb, key[3:]):
        return f"{key[3:]}=false"
    value = following[-1] if following else ""
    is_option = (key_of_next := _split(value)[0]) != value and _is_known(verb, key_of_next)
    if not value or is_option or (value.startswith("-") and not _NUMBER.match(value)):
        if key and not _is_known(verb, key):
            raise ValueError(unknown_option(verb, key))
        raise ValueError(f"{word}: needs a value, as in {word} {_EXAMPLES.get(key, 'VALUE')}; --help lists the options")
    following.pop()
    return f"{key}={value}"


def _split(text: str) -> tuple[str, str | None]:
    """Key and value of an assignment; other words have no value."""
    if text.startswith(("-", "~")) or "=" not in text:
        return text, None
    key, _, value = text.partition("=")
    return key, value


def _is_known(verb: str, key: str) -> bool:
    """Whether an option may have this name: a short one, or one in a group of options that exists."""
    name = canonical(key.lstrip("+"))
    if name in ALIASES[verb] or "/" in name or "@" in name:  # Hydra's own
        return True
    known = {"hydra", *(option.partition(".")[0] for option in known_options(verb))}
    return name.partition(".")[0] in known | (set(OVERLAYS) if verb == "train" else set())


def _check(verb: str, text: str, key: str, value: str) -> None:
    """Raise ValueError for what Hydra would misunderstand, or answer with its grammar."""
    name = key.lstrip("+")
    if not name:
        raise ValueError(f"{text}: there is no option before '='; write OPTION=VALUE")
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key}: unknown option; `vision-stack {verb} --help` lists them")
    if value.startswith("="):
        raise ValueError(f"{text}: one '=' too many; write {key}={value.lstrip('=')}")
    if not value and ("." not in name or name in PATH_KEYS):
        raise ValueError(f"{text}: there is nothing after '='; give a value, or leave {name} out")
    if name == key and not _is_known(verb, key):
        raise ValueError(unknown_option(verb, key))
    if value.lower() == "null" and name in REQUIRED_GROUPS:
        instead = "logger=none" if name == "logger" else f"{name}=NAME, or leave it out"
        raise ValueError(f"{text}: every run needs one; write {instead}")
    if value.lower() == "null" and name in OVERLAYS:
        raise ValueError(f"{text}: sets nothing; leave {name} out")
    if value.lower() == "null" and name == "run_dir":
        raise ValueError(f"{text}: is not a folder; leave run_dir out for outputs/<date>/<time>")


def _check_agreement(meant: Sequence[tuple[str, str]]) -> None:
    """Raise ValueError for two names of one option with two values. Of one name, the last value counts."""
    seen: dict[str, tuple[str, str]] = {}
    for text, option in meant:
        key = option.lstrip("+").partition("=")[0]
        if "=" not in option or not key:
            continue
        other, other_option = seen.setdefault(key, (text, option))
        if other.partition("=")[0] != text.partition("=")[0] and other_option != option:
            raise ValueError(f"{other} and {text} both set {key}; leave out one of them")
        seen[key] = (text, option)


def _is_topic(verb: str, text: str) -> bool:
    """Whether help has something to say about a word: a group, an option, or the last part of its name."""
    known = known_options(verb)
    names = {*ALIASES[verb], *known, *(option.rpartition(".")[2] for option in known)}
    return canonical(text) in names or (verb == "train" and text in {*groups(), *OVERLAYS})


def _check_bare_word(verb: str, text: str) -> None:
    name = text[1:].partition("=")[0]
    if text.startswith("~") and name not in REQUIRED_GROUPS:
        return
    if text.startswith("~"):
        raise ValueError(f"{text}: every run needs its {name}; choose another by {name}=NAME")
    if not text.strip():
        raise ValueError("an empty word was typed; remove it (an unset shell variable in quotes?)")
    name = canonical(text)
    exact = {*ALIASES[verb], *known_options(verb), *(groups() if verb == "train" else ()), *OVERLAYS}
    if name in exact and not Path(text).exists():
        listing = f"; --help {text} lists them" if text in (*groups(), "augment") and verb == "train" else ""
        raise ValueError(f"{text}: has no value; write {name}=VALUE{listing}")
    meanings = ", or ".join(_meanings(verb, text))
    instead = f"did you mean {meanings}?" if meanings else "write OPTION=VALUE, as in data.root=DIR or source=FILE"
    raise ValueError(f"{text!r} is not an option; {instead}")


def _meanings(verb: str, text: str) -> Iterator[str]:
    """What a path may have been meant as."""
    path = Path(text).expanduser()
    is_folder, suffix = path.is_dir(), path.suffix.lower()
    is_model = suffix in _WEIGHTS or (path / LAST_CHECKPOINT).is_file() or (path / "config.json").is_file()
    if verb == "train":
        if is_model:
            yield from (f"resume={text}, which continues its run", f"weights={text}, which starts a new run from it")
        elif is_folder or suffix == ".json" or path.name in ("data.yaml", "data.yml"):
            yield f"data={text}"
        elif suffix in (".yaml", ".yml"):
            yield f"experiment=NAME ({OWN_YAML})"
    elif is_model:
        yield f"checkpoint={text}"
    elif verb == "predict":
        yield f"source={text}"
    elif is_folder or suffix == ".json":
        yield f"data={text}"
