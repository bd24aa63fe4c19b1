"""Train: `python train.py [data=coco data.root=DIR] [backbone=swin_tiny] [experiment=NAME] [run_dir=DIR] ...`"""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, os.getcwd())  # for `plugins`, which lie where the user works

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vision_stack import cli

errors = cli.OneLineErrors()


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    """Compose the options, import the user's plugins, build, fit."""
    with errors:
        run(OmegaConf.to_container(cfg, resolve=True), Path(HydraConfig.get().runtime.output_dir))  # type: ignore[arg-type]


def run(config: dict[str, Any], run_dir: Path) -> None:
    """One run; a sweep makes several."""
    cli.refuse_finished_run(run_dir, config["resume"])
    from vision_stack.training.run import train

    cli.import_plugins(config["plugins"])

    def make_trainer(callbacks: list[Any]) -> Any:
        mine = [instantiate(options) for options in config["callbacks"].values() if options]
        loggers = [instantiate(options, run_dir=str(run_dir)) for options in config["logger"].values() if options]
        options = {"callbacks": [*callbacks, *mine], "logger": loggers, "default_root_dir": str(run_dir)}
        return instantiate(config["trainer"], **options)

    train(config, run_dir, make_trainer, HydraConfig.get().overrides.task)


if __name__ == "__main__":
    with errors:
        sys.argv[1:] = cli.quote_paths(cli.train_arguments(sys.argv[1:]))
        main()
    sys.exit(errors.exit_code)
