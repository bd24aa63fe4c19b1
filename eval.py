"""Evaluate: `python eval.py checkpoint=PATH [data.root=DIR] [run_dir=DIR]` prints AP, PQ or mIoU."""

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


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(cfg: DictConfig) -> None:
    """Rebuild model and data from the checkpoint, evaluate."""
    with errors:
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        run(config, Path(HydraConfig.get().runtime.output_dir))  # type: ignore[arg-type]


def run(config: dict[str, Any], run_dir: Path) -> None:
    """One evaluation; a sweep makes several."""
    from vision_stack.training.evaluation import evaluate

    cli.import_plugins(config["plugins"])

    def make_trainer() -> Any:
        loggers = [instantiate(options, run_dir=str(run_dir)) for options in config["logger"].values() if options]
        return instantiate(config["trainer"], logger=loggers, default_root_dir=str(run_dir))

    evaluate(config, run_dir, make_trainer)


if __name__ == "__main__":
    with errors:
        sys.argv[1:] = cli.open_group(cli.quote_paths(sys.argv[1:]), "data")
        main()
    sys.exit(errors.exit_code)
