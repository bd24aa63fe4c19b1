"""Predict: `python predict.py checkpoint=PATH source=FILE|DIR|GLOB [threshold=0.5] [run_dir=DIR]`."""

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, os.getcwd())  # for `plugins`, which lie where the user works

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vision_stack import cli

errors = cli.OneLineErrors()


@hydra.main(version_base="1.3", config_path="configs", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Load the checkpoint's model, go through the images."""
    with errors:
        from vision_stack.training.prediction import predict

        config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        cli.import_plugins(config["plugins"])
        predict(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    with errors:
        sys.argv[1:] = cli.quote_paths(sys.argv[1:])
        main()
    sys.exit(errors.exit_code)
