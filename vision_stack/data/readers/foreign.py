"""Formats that are recognised but not read: what a folder holds, and how it becomes one that is."""

from __future__ import annotations

from vision_stack.data.readers.files import Files

_EXPORT = "export it as COCO json from the tool that made it"


def describe(files: Files) -> tuple[str, str] | None:
    """What a folder holds, and what to do with it; None if it is not a format that is known here."""
    for _, head in files.heads(".json"):
        if '"_via_' in head or '"shape_attributes"' in head:
            return "json of the VGG Image Annotator", _EXPORT
        if head.startswith("[") and '"annotations"' in head and '"result"' in head:
            return "Label Studio's own json", _EXPORT
    if any("<annotations>" in head and "<image " in head for _, head in files.heads(".xml")):
        return "CVAT's own xml", _EXPORT
    return None
