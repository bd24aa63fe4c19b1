"""Examine a data set: `vision-stack doctor DIR [OPTION=VALUE ...] [--json] [--html FILE] [--fix OUT]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from vision_stack.commands.aliases import LARGEST_IMAGE, SMALLEST_IMAGE, canonical, known_value
from vision_stack.commands.arguments import PATH_KEYS
from vision_stack.commands.data_words import data_options
from vision_stack.commands.errors import OneLineErrors
from vision_stack.commands.option_docs import choices

_EPILOG = """\
exit code: 0 nothing is broken, 1 errors were found (with --strict: or warnings), 2 the data cannot be read
OPTION=VALUE is as in `vision-stack train`: data=semantic data.root=DIR, data.val_annotations=FILE, task=instance
"""


def main(argv: Sequence[str]) -> int:
    """Exit code 0 if nothing is broken, 1 if something is, 2 after one line if the data cannot be read."""
    options = _parser().parse_args(argv)
    errors = OneLineErrors()
    failed = False
    with errors:
        config = _data_config(options.words)
        failed = _examine(config, options, argv)
    return errors.exit_code or int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vision-stack doctor",
        description="Examine a data set: broken records, duplicates, leaks between splits, classes, small objects.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="+", metavar="DIR", help="folder of the data set; and OPTION=VALUE")
    parser.add_argument("--image-size", type=_pixels, metavar="N", help="longest side at which images are trained")
    parser.add_argument("--stride", type=_count, default=4, metavar="N", help="of the finest feature map (4)")
    parser.add_argument("--queries", type=_count, default=100, metavar="N", help="most objects that a head finds (100)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="where the page goes (doctor_NAME.html)")
    parser.add_argument("--no-html", action="store_true", help="write no page")
    parser.add_argument(
        "--json", action="store_true", help="print the findings as json; no page unless --html is given"
    )
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write a repaired COCO copy into a new folder")
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings, too")
    return parser


def _pixels(text: str) -> int:
    if not text.isdecimal() or not SMALLEST_IMAGE <= int(text) <= LARGEST_IMAGE:
        raise argparse.ArgumentTypeError(f"expected pixels, {SMALLEST_IMAGE} to {LARGEST_IMAGE:,}, got {text}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"expected a number, 1 to 100,000, got {text}")
    return int(text)


def _data_config(words: Sequence[str]) -> dict[str, Any]:
    """The plain options of `data`, with `task` beside them.

    Raises:
        ValueError: a word that means nothing here; one line.
    """
    from vision_stack.structures import Task

    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or Path(word).exists():
            key, value = "data", f"./{word}" if Path(word).is_dir() and word in choices("data") else word
        key = {"root": "data.root"}.get(canonical(key), key)
        if key not in ("data", "task") and not key.startswith("data."):
            raise ValueError(f"{word}: unknown here; give a folder, task=TASK, or options of data=, as data.root=DIR")
        if key in values:
            raise ValueError(f"{word}: {key} is given twice, as {values[key]} before")
        values[key] = value
    name = values.pop("data", values.get("data.root", ""))
    if not name:
        raise ValueError("data: missing; give the folder of the data set")
    if name == values.get("data.root"):
        del values["data.root"]
    task = known_value("task", values.pop("task", ""))
    if task and task not in get_args(Task):
        raise ValueError(f"task={task}: unknown task; give one of {', '.join(get_args(Task))}")
    plain: dict[str, Any] = {"task": task or None}
    for option in [*data_options(name, values), *(f"{key}={value}" for key, value in values.items())]:
        key, _, value = option.partition("=")
        if key == "data":
            plain["type"] = value
        else:
            parsed = value if key in PATH_KEYS else yaml.safe_load(value)
            plain[key.removeprefix("data.")] = parsed
    return plain


def _examine(plain: dict[str, Any], options: argparse.Namespace, argv: Sequence[str]) -> bool:
    """Whether something is broken."""
    from vision_stack.commands.doctor_report import as_json, page_of, summary, title_of
    from vision_stack.config import from_dict
    from vision_stack.data.checks.doctor import examine
    from vision_stack.data.checks.small_objects import View
    from vision_stack.data.configs import DataConfig  # registers the formats
    from vision_stack.data.repair import REPORT, check_target, write_repaired
    from vision_stack.ops.files import write_file

    task = plain.pop("task")
    config: DataConfig = from_dict(plain, kind="data")
    transform = config.eval_transform
    short, long = (options.image_size,) * 2 if options.image_size else (transform.short_edge, transform.long_edge)
    view = View(short_edge=short, long_edge=long, stride=options.stride, max_objects=options.queries)
    title = title_of(config)
    page_file = None if options.no_html or (options.json and not options.html) else options.html
    if page_file is None and not options.no_html and not options.json:
        page_file = Path(f"doctor_{title}.html")
    if page_file is not None:
        _check_page_file(page_file)
    originals = [Path(config.root).expanduser()] if config.root else []
    if options.fix is not None:
        check_target(options.fix, originals)
    examination = examine(config, task, view)
    if page_file is not None:
        write_file(page_file, page_of(examination, config, argv).encode("utf-8", "backslashreplace"), durable=False)
    if options.json:
        json.dump(as_json(examination, config), sys.stdout, indent=1)
        print()
    else:
        print("\n".join(summary(examination, config, page_file)))
    if options.fix is not None:
        repairs = write_repaired(examination.splits, examination.diagnoses, options.fix, originals=originals)
        print(f"repaired copy: {options.fix}: {'; '.join(repairs)} ({options.fix / REPORT})", file=sys.stderr)
    return bool(examination.count("error") or (options.strict and examination.count("warning")))


def _check_page_file(path: Path) -> None:
    """Raise ValueError unless the page may be written there."""
    from vision_stack.visualization.doctor_page import GENERATOR

    if path.is_dir():
        raise ValueError(f"--html: {path} is a folder; give a file, as {path / 'doctor.html'}")
    if path.is_file() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:4000]:
        raise ValueError(f"--html: {path} is not a page of the doctor and would be overwritten; give another file")
