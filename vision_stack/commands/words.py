"""The words people type: flags and short names become Hydra's `option=value`, and what cannot be meant takes one line.

`--data coco --epochs 10` is `data=coco trainer.max_epochs=10`. Pure Python, as `arguments.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vision_stack.commands.arguments import PATH_KEYS
from vision_stack.config import config_dir

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
# Groups that every run needs one of.
REQUIRED_GROUPS = ("backbone", "neck", "head", "data", "optim", "trainer", "callbacks", "logger")
_KEY = re.compile(r"\+{0,2}[\w.@/-]+", re.ASCII)
_NUMBER = re.compile(r"-\d")


class Alias(NamedTuple):
    """A short name for options."""

    means: Callable[[str, str], list[str]]  # its value and the data's name -> options
    place: str  # what it stands for, as help shows it
    text: str


def _option(key: str, values: dict[str, str] | None = None) -> Callable[[str, str], list[str]]:
    return lambda value, _: [f"{key}={(values or {}).get(value.lower(), value)}"]


def _train_device(value: str, _: str) -> list[str]:
    kind, _colon, number = value.lower().partition(":")
    if kind in ("cpu", "mps", "auto"):
        return [f"trainer.accelerator={kind}"]
    if kind in ("cuda", "gpu"):
        return ["trainer.accelerator=gpu", *([f"trainer.devices=[{number}]"] if number else [])]
    if re.fullmatch(r"\[?\d+(,\d+)*\]?", kind):
        return ["trainer.accelerator=gpu", f"trainer.devices=[{kind.strip('[]')}]"]
    raise ValueError(f"device={value}: unknown; give cpu, cuda, cuda:1, mps, or the numbers of GPUs as in device=0,1")


def _image_size(value: str, data: str) -> list[str]:
    if not value.isdecimal() or not 32 <= int(value) <= 10_000:
        raise ValueError(f"imgsz={value}: expected pixels of the longer side, as in imgsz=640")
    if data == "shapes":
        return [f"data.image_size={value}"]
    size = int(value)
    shorter = ",".join(str(size * part // 8) for part in (5, 6, 7, 8))
    return [
        f"data.train_transform.short_edges=[{shorter}]",
        f"data.train_transform.long_edge={size}",
        *_eval_size(value, data),
    ]


def _eval_size(value: str, _: str) -> list[str]:
    return [f"data.eval_transform.short_edge={value}", f"data.eval_transform.long_edge={value}"]


_PRECISION = {
    **dict.fromkeys(("fp32", "float32", "32"), "32-true"),
    **dict.fromkeys(("fp16", "float16", "16", "amp"), "16-mixed"),
    **dict.fromkeys(("bf16", "bfloat16"), "bf16-mixed"),
}
_RUN_NAME = Alias(lambda value, _: [f"run_dir=outputs/{value}"], "run_dir=outputs/NAME", "folder of the run")
ALIASES: dict[str, dict[str, Alias]] = {
    "train": {
        "epochs": Alias(_option("trainer.max_epochs"), "trainer.max_epochs", "how often all images are seen"),
        "steps": Alias(_option("trainer.max_steps"), "trainer.max_steps", "optimizer steps, instead of epochs"),
        "lr": Alias(_option("optim.lr"), "optim.lr", "learning rate"),
        "batch_size": Alias(_option("data.batch_size"), "data.batch_size", "images in a training step of one device"),
        "imgsz": Alias(_image_size, "data.train_transform, data.eval_transform", "longest side in pixels"),
        "workers": Alias(_option("data.num_workers"), "data.num_workers", "processes that load images"),
        "device": Alias(_train_device, "trainer.accelerator, trainer.devices", "cpu, cuda, cuda:1, mps or 0,1"),
        "precision": Alias(_option("trainer.precision", _PRECISION), "trainer.precision", "fp32, bf16 or fp16"),
        "name": _RUN_NAME,
        "root": Alias(_option("data.root"), "data.root", "folder of the data"),
        "pretrained": Alias(_option("backbone.pretrained"), "backbone.pretrained", "true, false, auto or a file"),
    },
    "eval": {
        "batch_size": Alias(_option("data.eval_batch_size"), "data.eval_batch_size", "images in a step"),
        "imgsz": Alias(_eval_size, "data.eval_transform", "longest side in pixels"),
        "workers": Alias(_option("data.num_workers"), "data.num_workers", "processes that load images"),
        "device": Alias(_train_device, "trainer.accelerator, trainer.devices", "cpu, cuda, cuda:1, mps or 0,1"),
        "precision": Alias(_option("trainer.precision", _PRECISION), "trainer.precision", "fp32, bf16 or fp16"),
        "name": _RUN_NAME,
        "root": Alias(_option("data.root"), "data.root", "folder of the data"),
        "weights": Alias(_option("checkpoint"), "checkpoint", "the model"),
        "model": Alias(_option("checkpoint"), "checkpoint", "the model"),
    },
    "predict": {
        "conf": Alias(_option("threshold"), "threshold", "lowest score that is drawn"),
        "weights": Alias(_option("checkpoint"), "checkpoint", "the model"),
        "model": Alias(_option("checkpoint"), "checkpoint", "the model"),
        "name": _RUN_NAME,
    },
}
_SAME = {
    "epoch": "epochs",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "max_steps": "steps",
    "iterations": "steps",
    "learning_rate": "lr",
    "lr0": "lr",
    "batch": "batch_size",
    "bs": "batch_size",
    "image_size": "imgsz",
    "img_size": "imgsz",
    "num_workers": "workers",
    "devices": "device",
    "gpus": "device",
    "data_root": "root",
    "confidence": "conf",
}


_EXAMPLE_VALUES = {"resume": "auto", "data": "DIR", "source": "FOLDER", "checkpoint": "best.ckpt"}


class Words(NamedTuple):
    """What was typed after a verb."""

    flags: list[str]  # Hydra's own, with their values
    options: list[str]  # option=value

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
    flags, typed = _assignments(argv)
    data = next((value for key, value in map(_split, typed) if key == "data"), None) or "shapes"
    result: list[str] = []
    for text in typed:
        key, value = _split(text)
        if value is None:
            _check_bare_word(text)
            result.append(text)
            continue
        _check(text, key, value)
        if alias := ALIASES[verb].get(_SAME.get(key, key)):
            result += alias.means(value, data)
        elif key == "data" and verb != "predict":
            result += _data_options(value)
        else:
            result.append(text)
    return Words(flags, result)


def _assignments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags, and all other words, flags among them as assignments: `--epochs 10` is `epochs=10`."""
    flags: list[str] = []
    typed: list[str] = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in HYDRA_FLAGS and equals and flag != "-sc":
            raise ValueError(f"{word}: {flag} takes no value")
        if flag in HYDRA_FLAGS:
            flags.append(word)
        elif flag in HYDRA_FLAGS_WITH_VALUE:
            flags += [word] if equals else [word, next(words, "")]
        elif word.startswith("-"):
            key = flag.lstrip("-").replace("-", "_")
            if not equals:
                value = next(words, "")
                if not value or (value.startswith("-") and not _NUMBER.match(value)):
                    example = f"{word} {_EXAMPLE_VALUES.get(key, 'VALUE')}"
                    raise ValueError(f"{word}: needs a value, as in {example}; --help lists the options")
            typed.append(f"{key}={value}")
        else:
            typed.append(word)
    return flags, typed


def _split(text: str) -> tuple[str, str | None]:
    """Key and value of an assignment; other words have no value."""
    if text.startswith(("-", "~")) or "=" not in text:
        return text, None
    key, _, value = text.partition("=")
    return key, value


def _check(text: str, key: str, value: str) -> None:
    """Raise ValueError for what Hydra would misunderstand, or answer with its grammar."""
    name = key.lstrip("+")
    if not name:
        raise ValueError(f"{text}: there is no option before '='; write OPTION=VALUE")
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key}: unknown option; --help lists them")
    if value.startswith("="):
        raise ValueError(f"{text}: one '=' too many; write {key}={value.lstrip('=')}")
    if not value and ("." not in name or name in PATH_KEYS):
        raise ValueError(f"{text}: there is nothing after '='; give a value, or leave {name} out")
    if value.lower() == "null" and name in REQUIRED_GROUPS:
        instead = "logger=none" if name == "logger" else f"{name}=NAME, or leave it out"
        raise ValueError(f"{text}: every run needs one; write {instead}")
    if value.lower() == "null" and name == "run_dir":
        raise ValueError(f"{text}: is not a folder; leave run_dir out for outputs/<date>/<time>")


def _check_bare_word(text: str) -> None:
    name = text[1:].partition("=")[0]
    if text.startswith("~") and name not in REQUIRED_GROUPS:
        return
    if text.startswith("~"):
        raise ValueError(f"{text}: every run needs its {name}; choose another by {name}=NAME")
    if not text.strip():
        raise ValueError("an empty word was typed; remove it (an unset shell variable in quotes?)")
    if re.fullmatch(r"[\w.@/]+", text, re.ASCII) and not Path(text).exists():
        raise ValueError(f"{text}: has no value; write {text}=VALUE")
    raise ValueError(f"{text!r}: is not an option; write OPTION=VALUE, as in data.root=DIR or source=FILE")


def _data_options(value: str) -> list[str]:
    """`data=` takes a name of `configs/data/`, or a folder or file of the user's."""
    if re.fullmatch(r"\w*", value) and (
        (config_dir() / "data" / f"{value}.yaml").is_file() or not Path(value).exists()
    ):
        return [f"data={value}"]
    path = Path(value.strip("'\"")).expanduser()
    if not path.exists():
        return [f"data={value}"]  # Hydra names the choices
    if path.is_dir():
        if _looks_like_coco(path):
            return ["data=coco", f"data.root={path}"]
        raise ValueError(f"data={value}: no COCO json found; the folder holds {_contents(path)}. {SUPPORTED}")
    if path.suffix == ".json":
        return ["data=coco", f"data.root={path.parent}", f"data.train_annotations={path.absolute()}"]
    raise ValueError(f"data={value}: cannot read {path.suffix or 'such'} files as data. {SUPPORTED}")


SUPPORTED = (
    "Supported: data=coco (COCO json), data=coco_panoptic (json and PNGs), data=semantic (images and label maps), "
    "each with data.root=DIR"
)


def _looks_like_coco(folder: Path) -> bool:
    patterns = ("*.json", "annotations/*.json", "*/_annotations.coco.json")
    names = {"classes.json", "dataset.json", "metadata.json"}
    return any(file.name not in names for pattern in patterns for file in folder.glob(pattern))


def _contents(folder: Path, limit: int = 20_000) -> str:
    """What is in a folder, by suffix: `120 .txt, 120 .jpg and 2 .yaml files`."""
    counts: dict[str, int] = {}
    for number, path in enumerate(folder.rglob("*")):
        if number == limit:
            break
        if path.is_file() and not path.name.startswith("."):
            counts[path.suffix.lower() or "unnamed"] = counts.get(path.suffix.lower() or "unnamed", 0) + 1
    if not counts:
        return "no files"
    kinds = [
        f"{count:,} {suffix}" for suffix, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:4]
    ]
    return " and ".join([", ".join(kinds[:-1]), kinds[-1]] if len(kinds) > 1 else kinds) + " files"
