"""One training run, from plain options to pictures."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from vision_stack.backbones.pretrained import load_pretrained
from vision_stack.config import from_dict, to_dict
from vision_stack.data.checks.issues import DataError
from vision_stack.data.checks.small_objects import View
from vision_stack.data.checkup import checkup
from vision_stack.data.configs import DataConfig
from vision_stack.data.datamodule import DataModule
from vision_stack.data.holding_out import write_list
from vision_stack.data.images import read_image
from vision_stack.data.workers import LoaderError
from vision_stack.metrics import Evaluator
from vision_stack.model import VisionModel
from vision_stack.ops.run_files import mark_finished, mark_unfinished
from vision_stack.training import resume
from vision_stack.training.allocator import keep_freed_memory
from vision_stack.training.auto import data_for, describe_settled, fitting, settled_values, task_of_data, without_autos
from vision_stack.training.averaging import prepare_averaging
from vision_stack.training.checkpoints import callbacks_of, checkpoints_of
from vision_stack.training.estimate import measure
from vision_stack.training.finetune import check_stages_known
from vision_stack.training.interrupts import Stopped
from vision_stack.training.lightning_module import SegmentationModule
from vision_stack.training.loggers import METRICS_TABLE
from vision_stack.training.memory_guard import MemoryGuard
from vision_stack.training.options import TrainOptions, decode_options
from vision_stack.training.pictures import draw_validation
from vision_stack.training.preview import draw_augmentation, length_warnings
from vision_stack.training.quiet import quiet_lightning
from vision_stack.training.results import METRICS_FILE, absolute, write_config
from vision_stack.training.settling import RECIPE, decode_parts, model_config, settle_options
from vision_stack.training.start import Start, backbone_warnings, describe_start, read_start, transfer
from vision_stack.training.strategy import prepare_strategy
from vision_stack.training.summary import describe_data, describe_model, describe_run, describe_training
from vision_stack.training.tasks import TASKS, build_evaluator
from vision_stack.training.trainer_options import check_loggers, profiles, write_profile
from vision_stack.visualization.curves import plot_curves

COARSEST = 8  # stride: heads on coarser maps refine them, or have learnt to do without
VAL_LIST = "val_images.json"  # of a run that holds images out


def train(
    config: Mapping[str, Any],
    run_dir: Path,
    make_trainer: Callable[[list[Any], Mapping[str, Any]], pl.Trainer],
    overrides: Sequence[str] = (),
) -> None:
    """Train, validate, and leave checkpoints, metrics and pictures in `run_dir`.

    Args:
        config: the plain options of configs/train.yaml; those in `recipe.RULES` may be `auto`.
        run_dir: where everything goes.
        make_trainer: gives the trainer of these callbacks, beside the configured ones, and of Lightning's options.
        overrides: what was typed on the command line, which goes before what `weights` says of the model.

    Raises:
        ValueError: options, data or checkpoint that the user has to fix; one line.
    """
    quiet_lightning()
    keep_freed_memory()
    config = fitting(config, overrides)
    config, task_notes = task_of_data(config, overrides)
    early = without_autos(config)  # what was typed is checked before anything is read
    options = decode_options(early, TrainOptions)
    seed = options.seed
    pl.seed_everything(seed, verbose=False)
    anew = not options.resume or any(text.startswith("weights=") for text in overrides)
    start = read_start(options.weights, early, overrides) if options.weights and anew else None
    if start and start.task != options.task:
        say(f"task        {start.task}: {start.task_reason}")
        config, early = ({**plain, "task": start.task} for plain in (config, early))
        options = decode_options(early, TrainOptions)
    parts: Mapping[str, Any] = start.parts if start else decode_parts(early)
    data = data_for(parts["head"], early)
    checkpoint = resume.read_last_checkpoint(options.resume) if options.resume else None

    config, settled = settle_options(config, data, start, checkpoint, overrides)
    options = decode_options(config, TrainOptions)
    optim, finetune = options.optim, options.finetune
    data.config = from_dict(config["data"], kind="data")
    data.check_augmentation()
    description = model_config(config, data.config, data, start)
    config["neck"] = to_dict(description.neck)  # fitted to the head, which is fitted to the task
    config["head"] = to_dict(description.head)
    if checkpoint is not None:
        description = resume.with_pixel_statistics(description, checkpoint)
        resume.check_same_model(checkpoint, to_dict(description))

    model = VisionModel(description)
    check_stages_known(model.backbone, finetune, optim.layer_decay)
    if finetune.gradient_checkpointing:
        model.backbone.enable_gradient_checkpointing()
    finetune.apply(model.backbone, epoch=0)
    weights = "those of the checkpoint" if checkpoint else _initial_weights(model, config, start)
    evaluator = build_evaluator(data, top_k=options.top_k)
    trainer_options = {name: value for name, value in config["trainer"].items() if name != "auto_batch"}
    own: list[Any] = [MemoryGuard(), *([resume.RestoreTraining(checkpoint)] if checkpoint else [])]
    trainer = make_trainer(own, trainer_options)
    prepare_averaging(trainer)
    check_loggers(trainer)
    write_profile(trainer)
    warnings = prepare_strategy(trainer, model, finetune) + length_warnings(trainer, data)
    run_config = {
        "data": stored_data(data.config),
        "optim": to_dict(optim),
        "finetune": to_dict(finetune),
        "seed": seed,
        "trainer": {
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "precision": str(trainer.precision),
        },
        RECIPE: settled_values(config),
    }
    if held_out := data.held_out():  # is found again, whatever joins the data
        run_config["data"]["val_list"] = config["data"]["val_list"] = absolute(str(run_dir / VAL_LIST))
    module = SegmentationModule(model, optim, evaluator, finetune=finetune, seed=seed, run_config=run_config)
    module.save_hyperparameters(dict(config))  # for loggers

    say(*describe_settled(settled), *task_notes)
    say(*describe_model(model, weights), *describe_training(model, optim, finetune))
    say(*describe_data(model.categories, len(data.train_records), len(data.val_records), len(data.problems)))
    rank_zero_only(_say_notes)(data, min(spec.stride for spec in model.neck.out_specs))
    if start and not checkpoint:
        say(*describe_start(start, model.categories, optim, config, overrides))
    if not start and not checkpoint:
        warnings += backbone_warnings(config["backbone"], data.config.type, overrides)
    start = None  # a whole model's memory
    say(*(f"warning: {warning}" for warning in warnings))
    _warn_about_limit(data, model.head.max_objects, model.config.head.limit)
    if options.measure:
        done = checkpoint["position"]["step"] if checkpoint else 0
        say(*measure(trainer, module, data, done))
    say(*describe_run(run_dir, str(options.resume) if checkpoint else ""))

    rank_zero_only(write_config)(config, run_dir)  # what was refused up to here leaves those of the interrupted run
    rank_zero_only(mark_unfinished)(run_dir)
    if held_out:
        rank_zero_only(write_list)(run_dir / VAL_LIST, held_out)
    if options.num_pictures:
        rank_zero_only(draw_augmentation)(run_dir, data)
    with _saying_how_to_resume(trainer, run_dir):
        if checkpoint is not None:
            for change in resume.changed_options(checkpoint, {k: v for k, v in run_config.items() if k != RECIPE}):
                say(f"warning: not as in the interrupted run, so the result will differ: {change}")
            _go_on(trainer, module, data, checkpoint, str(options.resume))
            del checkpoint
        trainer.fit(module, datamodule=data)
    _finish(trainer, data, evaluator, run_dir, options.num_pictures)
    position = checkpoints_of(trainer).position
    if position.step:
        rank_zero_only(mark_finished)(run_dir, position.epoch, position.step)


def _go_on(
    trainer: pl.Trainer, module: SegmentationModule, data: DataModule, checkpoint: Mapping[str, Any], path: str
) -> None:
    position = resume.restore(trainer, module, checkpoint, path)
    if not position.validated:
        with position.validating(trainer):
            trainer.validate(module, datamodule=data, verbose=False)
        checkpoints_of(trainer).save_validated(trainer, checkpoint)
    data.set_position(position.epoch, position.batches_done)


@contextmanager
def _saying_how_to_resume(trainer: pl.Trainer, run_dir: Path) -> Iterator[None]:
    """Whatever stops the block."""
    last = run_dir / "checkpoints" / "last.ckpt"
    advice = f"resume with resume={shlex.quote(str(last))}"
    try:
        with checkpoints_of(trainer).stopping_on_signals():
            yield
    except Stopped as stop:
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)  # the other ranks, which wait for this one
        raise Stopped(stop.signum, advice if last.is_file() else "") from None
    except (DataError, LoaderError) as error:
        if not last.is_file():
            raise
        raise type(error)(f"{error}; then {advice}") from None


def _initial_weights(model: VisionModel, config: Mapping[str, Any], start: Start | None) -> str:
    taken = ""
    if start:
        taken_over = transfer(start, model)
        taken = f"{start.source}: {taken_over}"
        if "backbone" not in start.changed:
            if any(name.startswith("backbone.") for name in taken_over.fresh):
                typed = ", ".join(key for key in start.changed if key.startswith("backbone."))
                say(f"warning: with {typed} the backbone of the weights does not fit: all of it starts at random")
            return taken
    report = load_pretrained(model.backbone, model.config.backbone, config["backbone"].get("pretrained", "auto"))
    source = f"{report.source} (see the warning)" if report.warning else str(report)
    return f"{taken}; the backbone's: {source}" if taken else source


def stored_data(config: DataConfig) -> dict[str, Any]:
    """What a checkpoint says of its data; the root as an absolute path, since evaluation may start elsewhere."""
    plain = to_dict(config)
    return {**plain, "root": absolute(config.root) if config.root else None}


@rank_zero_only
def say(*lines: str) -> None:
    """Print, once for all ranks."""
    for line in lines:
        print(line, flush=True)


def _say_notes(data: DataModule, stride: int) -> None:
    say(*data.notes())
    seen = data.config.eval_transform
    view = View(short_edge=seen.short_edge, long_edge=seen.long_edge, stride=min(stride, COARSEST), max_objects=None)
    say(*checkup(data.config, {"train": data.train_split, "val": data.val_split}, view))


def _warn_about_limit(data: DataModule, limit: int | None, option: str) -> None:
    if limit and (crowded := data.num_train_images_with_more_objects_than(limit)):
        images = "1 training image has" if crowded == 1 else f"{crowded:,} training images have"
        say(
            f"warning: {images} more than {limit} {TASKS[data.task].finds}, the most that can be found in one; raise "
            f"head.{option}"
        )


@rank_zero_only
def _finish(trainer: pl.Trainer, data: DataModule, evaluator: Evaluator, run_dir: Path, num_pictures: int) -> None:
    checkpoints = run_dir / "checkpoints"
    for callback in callbacks_of(trainer):
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            say(f"stopped early: {callback.stopping_reason_message.partition(' Signaling')[0]}")
    say(*(f"profile:    {path}" for path in profiles(run_dir)))
    best = checkpoints_of(trainer).best_score
    if best is None:
        last = checkpoints / "last.ckpt"
        if last.is_file():
            say(f"no validation was run; checkpoint: {last}")
        else:
            say("no step was trained, so there is no checkpoint: trainer.max_epochs, max_steps or max_time is 0")
        return
    metrics = json.loads((run_dir / METRICS_FILE).read_text(encoding="utf-8"))
    Console().print(evaluator.table(metrics))
    pictures = draw_validation(run_dir, data.val_records, data.categories, num_pictures, data.task)
    if (run_dir / METRICS_TABLE).is_file():
        plot_curves(run_dir / METRICS_TABLE, run_dir / "pictures" / "curves.png")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            for path in pictures:
                logger.experiment.add_image(path.stem, read_image(path), trainer.global_step, dataformats="HWC")
    if point := metrics.get("operating_point"):
        line = "{f1:.3f} at score >= {threshold:.3g}: precision {precision:.3f}, recall {recall:.3f}"
        nothing = "none: no detection matches an object by an IoU of 0.5; pictures show the best-scoring ones"
        say(f"best F1     {line.format(**point) if point['f1'] else nothing}")
    say(
        f"pictures:   {run_dir / 'pictures'}",
        f"checkpoint: {checkpoints / 'best.ckpt'} ({evaluator.score_text(best)})",
    )
