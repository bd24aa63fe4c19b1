"""`vision_stack.train` and `vision_stack.evaluate`: the commands from Python, with the same options."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision_stack.commands import eval as eval_command
from vision_stack.commands import train as train_command
from vision_stack.commands.arguments import open_group, quote_paths, typed_run_dir
from vision_stack.commands.composing import Composition, compose_options
from vision_stack.commands.errors import raising_value_errors
from vision_stack.commands.plugins import import_plugins, offer_plugins
from vision_stack.commands.run_folders import hold, new_run_dir, remove_unused
from vision_stack.commands.stored_options import train_composition
from vision_stack.commands.words import understand
from vision_stack.training.interrupts import Stopped

if TYPE_CHECKING:
    from vision_stack.model import VisionModel


@dataclass(frozen=True)
class Run:
    """What a training or an evaluation left in its folder."""

    run_dir: Path

    @property
    def metrics(self) -> dict[str, Any]:
        """Contents of metrics.json, such as `metrics["segm"]["AP"]`; empty if nothing was validated."""
        file = self.run_dir / "metrics.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def model(self) -> VisionModel:
        """The trained model: the best checkpoint's, or the last one's if nothing was validated."""
        from vision_stack.model import VisionModel

        return VisionModel.from_pretrained(self.run_dir)


def train(
    data: str | Path | None = None,
    *,
    root: str | Path | None = None,
    task: str | None = None,
    backbone: str | None = None,
    neck: str | None = None,
    head: str | None = None,
    weights: str | Path | None = None,
    run_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Run:
    """Train a model, as `vision-stack train` does with the options of the same names.

    Args:
        data: "coco", "semantic", ... or a folder; the generated scenes if None.
        root: folder of the data.
        run_dir: where everything goes; a new folder `outputs/<date>/<time>` if None.
        overrides: any other options as they are typed: `["optim.lr=1e-4", "epochs=30"]`.
        options: the same as values, `epochs=30`; with a dot in the name, `**{"optim.lr": 1e-4}`.

    Raises:
        ValueError: options or data that have to be fixed; one line.
    """
    named = {"data": data, "task": task, "backbone": backbone, "neck": neck, "head": head}
    named |= {"data.root": root, "weights": weights, "run_dir": run_dir}
    with raising_value_errors("train"):
        return _run("train", train_composition(understand("train", [*_typed(named | options), *overrides]).options))


def evaluate(
    checkpoint: str | Path,
    *,
    data: str | Path | None = None,
    root: str | Path | None = None,
    run_dir: str | Path | None = None,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Run:
    """Evaluate a checkpoint, as `vision-stack eval` does with the options of the same names; see `train`.

    Raises:
        ValueError: no such checkpoint, or options or data that have to be fixed; one line.
    """
    named = {"checkpoint": checkpoint, "data": data, "data.root": root, "run_dir": run_dir}
    with raising_value_errors("eval"):
        words = understand("eval", [*_typed(named | options), *overrides])
        return _run("eval", Composition("eval", open_group(words.options, "data")))


def _typed(named: dict[str, Any]) -> list[str]:
    """Options as they would be typed; None leaves one out."""
    return [f"{name}={_text(value)}" for name, value in named.items() if value is not None]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    return "null" if value is None else str(value)


def _run(verb: str, composition: Composition) -> Run:
    options = composition.options
    run_dir = typed_run_dir(options)
    if run_dir is None:
        run_dir = Path(new_run_dir(f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S}"))
        options = [*options, f"run_dir={run_dir}"]
    try:
        hold(run_dir)
        offer_plugins(options)
        config, _ = compose_options(Composition(composition.name, quote_paths(options)))
        import_plugins(config["plugins"])
        (train_command if verb == "train" else eval_command).run(config, run_dir, options)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        raise SystemExit(stop.exit_code) from None
    finally:
        remove_unused()
    return Run(run_dir)
