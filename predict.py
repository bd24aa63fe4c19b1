"""Predict: `python predict.py checkpoint=PATH source=FILE|DIR|GLOB [threshold=0.5] [run_dir=DIR]`."""

import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vision_stack import cli


@hydra.main(version_base="1.3", config_path="configs", config_name="predict")
def main(cfg: DictConfig) -> None:
    """Load the checkpoint's model, go through the images."""
    from vision_stack.training.prediction import predict

    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    predict(config, Path(HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    with cli.one_line_errors():
        sys.argv[1:] = cli.quote_paths(sys.argv[1:])
        main()
