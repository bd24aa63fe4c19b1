"""RF-DETR's DINOv2, most of whose blocks attend within windows (Robinson et al. 2025), as in LW-DETR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from vision_stack.backbones.families.vit import Dinov2Config
from vision_stack.backbones.families.windows import WindowedBackbone
from vision_stack.backbones.stages import select_stages
from vision_stack.config import Range, register
from vision_stack.weights.windowed_dinov2 import convert_windowed_dinov2


@register("backbone", "rf_detr_dinov2")
@dataclass(kw_only=True)
class WindowedDinov2Config(Dinov2Config):
    """DINOv2 ViT-B/14 by default; the published models are ViT-S with patches of 16, 12 or 14 pixels.

    Where `window_block_indexes` is left out, the blocks that attend to the whole image are those numbered like the
    selected stages. Stage k is what block k - 1 gives, so that the block before a map attends within windows and the
    one after it does not. The published weights are made for this.
    """

    leaves_tail: ClassVar = False

    num_windows: Annotated[int, Range(1, 64)] = 4  # a side
    window_block_indexes: tuple[Annotated[int, Range(0, 200)], ...] | None = None  # None: as the stages are selected

    def check(self) -> None:
        super().check()
        if self.window_block_indexes is None:
            chosen = select_stages(self.stages, self.out_features, self.out_indices, self.out_strides).out_features
            whole = [i for i, stage in enumerate(self.stages) if stage.name in chosen]
            self.window_block_indexes = tuple(i for i in range(whole[-1]) if i not in whole)

    def transformers_fields(self) -> dict[str, Any]:
        return {**super().transformers_fields(), "use_mask_token": False}  # of pretraining

    def build(self) -> WindowedDinov2Backbone:
        return WindowedDinov2Backbone(self)


class WindowedDinov2Backbone(WindowedBackbone):
    """timm's ViT with layer scale, in windows. Positions are resampled with antialiasing.

    Differs from transformers 5.24: none for square images. Of others it cuts no rectangles; here they are.
    """

    config: WindowedDinov2Config
    prefix = "rf_detr_dinov2"
    to_timm = staticmethod(convert_windowed_dinov2)
    antialias = True

    def __init__(self, config: WindowedDinov2Config) -> None:
        super().__init__(config, config.num_windows, config.window_block_indexes or ())
