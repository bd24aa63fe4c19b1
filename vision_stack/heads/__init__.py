"""Heads: from maps to predictions, losses and results. Importing this package registers them."""

from vision_stack.heads.maskformer import MaskFormerHead, MaskFormerHeadConfig

__all__ = ["MaskFormerHead", "MaskFormerHeadConfig"]
