"""Every argument of Lightning's Trainer does what it says, or is refused with what to give instead."""

import csv
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import tiny_run
import torch
from hydra.utils import instantiate
from pytorch_lightning.loggers import WandbLogger

from vision_stack.training.evaluation import evaluate
from vision_stack.training.lightning_module import SegmentationModule
from vision_stack.training.options import EvalOptions, TrainOptions, decode_options
from vision_stack.training.trainer_options import REFUSED, check_loggers, check_trainer_options


class Probe(pl.Callback):
    """What went on in a run."""

    def __init__(self, stop_after: int = 0) -> None:
        self.stop_after = stop_after
        self.seen: dict[str, Any] = {"validated after": [], "validation batches": [], "trained": 0, "autocast": False}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seen |= {
            "device": pl_module.device.type,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "benchmark": torch.backends.cudnn.benchmark,
            "dtype": next(pl_module.parameters()).dtype,
        }
        pl_module.model.head.register_forward_pre_hook(self.on_forward)

    def on_forward(self, *_: Any) -> None:
        self.seen["autocast"] = torch.is_autocast_enabled("cpu")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.seen["trained"] += 1
        self.seen["anomaly"] = torch.is_anomaly_enabled()
        if self.stop_after and trainer.global_step == self.stop_after:
            trainer.should_stop = True

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            self.seen["sanity"] = self.seen.get("sanity", 0) + 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.seen["validated after"].append(trainer.global_step)
            self.seen["images"] = pl_module.results.metrics["num_images"]

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.seen |= {"steps": trainer.global_step, "hparams": dict(pl_module.hparams)}


class Case(NamedTuple):
    """An option, a value of it, what of a run it changes, from what and to what."""

    option: str
    value: str
    fact: str
    before: Any
    after: Any
    together_with: tuple[str, ...] = ()
    stop_after: int = 0


PLAIN = ("trainer.max_epochs=1", "data.num_val=4", "data.eval_batch_size=2")  # 4 steps, 2 batches of validation
# fmt: off
CASES = [
    Case("max_epochs", "2", "steps", 4, 8),
    Case("max_steps", "3", "steps", 4, 3),
    Case("max_time", "{milliseconds: 1}", "steps", 4, 1),
    Case("min_epochs", "2", "steps", 1, 8, ("trainer.max_epochs=3",), stop_after=1),
    Case("min_steps", "5", "steps", 1, 5, ("trainer.max_epochs=3",), stop_after=1),
    Case("fast_dev_run", "2", "steps", 4, 2),
    Case("limit_train_batches", "3", "steps", 4, 3),
    Case("limit_val_batches", "1", "images", 4, 2),
    Case("accumulate_grad_batches", "2", "steps", 4, 2),
    Case("val_check_interval", "2", "validated after", [4], [2, 4]),
    Case("check_val_every_n_epoch", "2", "validated after", [4, 8], [8], ("trainer.max_epochs=2",)),
    Case("num_sanity_val_steps", "1", "sanity", None, 1),
    Case("precision", "bf16-mixed", "autocast", False, True),
    Case("deterministic", "true", "deterministic", False, True),
    Case("benchmark", "true", "benchmark", False, True),
    Case("detect_anomaly", "true", "anomaly", False, True),
    Case("accelerator", "cpu", "device", "cpu", "cpu"),
]
# fmt: on
# Those whose effect shows in files or on the screen, and those of several processes, below or in other tests.
ELSEWHERE = {"strategy", "devices", "sync_batchnorm", "num_nodes", "plugins", "profiler", "log_every_n_steps"}
ELSEWHERE |= {"enable_model_summary", "enable_autolog_hparams"}


@pytest.fixture(autouse=True)
def _global_switches() -> Any:
    """Lightning leaves PyTorch's switches as the last trainer wanted them."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.autograd.set_detect_anomaly(False)


def seen(run_dir: Path, *options: str, stop_after: int = 0) -> dict[str, Any]:
    probe = Probe(stop_after)
    tiny_run.train(run_dir, *PLAIN, *options, callbacks=(probe,))
    return probe.seen


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return seen(tmp_path_factory.mktemp("plain"))


def test_every_argument_of_the_trainer_is_either_honoured_or_refused() -> None:
    arguments = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    honoured = {case.option for case in CASES} | ELSEWHERE
    assert honoured | set(REFUSED["train"]) == arguments
    assert not honoured & set(REFUSED["train"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.option)
def test_option_changes_what_it_should(case: Case, plain: dict[str, Any], tmp_path: Path) -> None:
    before = plain
    if case.together_with or case.stop_after:
        before = seen(tmp_path / "before", *case.together_with, stop_after=case.stop_after)
    option = f"++trainer.{case.option}={case.value}"
    after = seen(tmp_path / "after", *case.together_with, option, stop_after=case.stop_after)
    assert (before.get(case.fact), after.get(case.fact)) == (case.before, case.after)


@pytest.mark.parametrize("verb", ["train", "eval"])
def test_refusals_name_the_option_and_take_values_that_ask_for_nothing(verb: Any) -> None:
    for name, refusal in REFUSED[verb].items():
        for value in refusal.nothing:
            check_trainer_options({name: value}, verb)
        with pytest.raises(ValueError, match=rf"^trainer\.{name}: .*(give|leave|upload)") as error:
            check_trainer_options({name: "something"}, verb)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ("gradient_clip_val=0.5", r"give optim\.clip_norm"),
        ("gradient_clip_algorithm=value", r"give optim\.clip_norm"),
        ("overfit_batches=1", r"give experiment=overfit, or data\.max_train_images"),
        ("logger=false", "give logger="),
        ("default_root_dir=x", "give run_dir"),
        ("enable_checkpointing=false", r"callbacks\.checkpoints\.every_n_steps"),
    ],
)
def test_option_that_would_do_nothing_is_refused_before_anything_is_read(option: str, remedy: str) -> None:
    config = tiny_run.compose_options("train", ["data=coco", "data.root=/nowhere", f"++trainer.{option}"])
    with pytest.raises(ValueError, match=rf"^trainer\.{option.partition('=')[0]}: .*{remedy}"):
        decode_options(config, TrainOptions)


@pytest.mark.parametrize("option", ["max_epochs=3", "accumulate_grad_batches=2", "max_time='00:00:01:00'"])
def test_option_of_training_is_refused_in_evaluation(option: str) -> None:
    config = tiny_run.compose_options("eval", ["checkpoint=x", f"++trainer.{option}"])
    with pytest.raises(ValueError, match=rf"^trainer\.{option.partition('=')[0]}: does nothing in evaluation"):
        decode_options(config, EvalOptions)


def test_both_configs_of_the_trainer_are_accepted() -> None:
    decode_options(tiny_run.compose_options("train", []), TrainOptions)
    decode_options(tiny_run.compose_options("train", ["trainer=ddp"]), TrainOptions)
    decode_options(tiny_run.compose_options("eval", ["checkpoint=x"]), EvalOptions)


def test_clip_norm_is_what_gradients_are_clipped_by() -> None:
    config = tiny_run.compose_options("train", ["optim.clip_norm=0.5"])
    module: Any = SimpleNamespace(optim=decode_options(config, TrainOptions).optim, _is_logged=lambda: False)
    module.model = torch.nn.Linear(2, 2)
    module.model(torch.ones(1, 2)).sum().mul(100).backward()
    optimizer = torch.optim.SGD(module.model.parameters())
    SegmentationModule.configure_gradient_clipping(module, optimizer)
    norm = torch.cat([p.grad.flatten() for p in module.model.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(("profiler", "shows"), [("simple", "run_training_batch"), ("advanced", "cumtime")])
def test_profile_is_written_into_the_run(profiler: str, shows: str, tmp_path: Path, capsys: Any) -> None:
    tiny_run.train(tmp_path, "trainer.max_steps=1", f"trainer.profiler={profiler}")
    (path,) = tmp_path.glob("*profile*.txt")
    assert shows in path.read_text()
    assert f"profile:    {path}" in capsys.readouterr().out


def test_model_summary_is_shown_if_asked_for(tmp_path: Path, capsys: Any) -> None:
    tiny_run.train(tmp_path, "trainer.max_steps=1", "trainer.enable_model_summary=true")
    assert "Total params" in capsys.readouterr().out


def test_trainer_takes_number_of_nodes_and_plugins() -> None:
    plugin = "+trainer.plugins=[{_target_: pytorch_lightning.plugins.DoublePrecision}]"
    config = tiny_run.compose_options("train", ["trainer.num_nodes=2", "trainer.precision=null", plugin])
    decode_options(config, TrainOptions)
    config["trainer"].pop("auto_batch")  # ours
    trainer = instantiate(config["trainer"], logger=False, enable_checkpointing=False)
    assert (trainer.num_nodes, trainer.precision) == (2, "64-true")


@pytest.mark.parametrize("enabled", [True, False])
def test_inference_mode_is_that_of_evaluation(enabled: bool, tmp_path: Path) -> None:
    tiny_run.train(tmp_path, "trainer.max_steps=1", "trainer.limit_val_batches=0")
    checkpoint = f"checkpoint='{tmp_path}/checkpoints/last.ckpt'"
    options = [
        checkpoint,
        "num_pictures=0",
        "trainer.accelerator=cpu",
        f"trainer.inference_mode={str(enabled).lower()}",
    ]
    config = tiny_run.compose_options("eval", options)
    found: list[bool] = []
    watch = pl.callbacks.LambdaCallback(
        on_validation_batch_start=lambda *_: found.append(torch.is_inference_mode_enabled())
    )
    evaluate(config, tmp_path, lambda: instantiate(config["trainer"], logger=False, callbacks=[watch]))
    assert set(found) == {enabled}


def test_steps_between_logged_values(tmp_path: Path) -> None:
    options = ["trainer.max_epochs=50", "trainer.log_every_n_steps=2", "logger=csv"]  # in a short run it would be 1
    tiny_run.train(tmp_path, *options, callbacks=(Probe(stop_after=4),))
    with (tmp_path / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]] == [1, 3]


def test_run_that_stops_early_says_so(tmp_path: Path, capsys: Any) -> None:
    options = ["callbacks=[ema,early_stopping]", "callbacks.early_stopping.patience=1", "trainer.max_epochs=9"]
    trainer = tiny_run.train(tmp_path, *options, "callbacks.early_stopping.min_delta=1.0")
    assert trainer.global_step == 8  # the second validation is no better than the first by 1
    assert "stopped early: Monitored metric val/score did not improve" in capsys.readouterr().out
    assert tiny_run.last(tmp_path)["averaging_state"]["n_averaged"] == 8


def test_logger_that_should_upload_checkpoints_is_refused() -> None:
    logger = WandbLogger.__new__(WandbLogger)
    logger._log_model = "all"
    with pytest.raises(ValueError, match=r"^logger: WandbLogger uploads no checkpoints .* log_model=false"):
        check_loggers(SimpleNamespace(loggers=[logger]))  # type: ignore[arg-type]
