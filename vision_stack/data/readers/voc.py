"""Pascal VOC: an xml of boxes for each image, and where there are any, masks in `SegmentationObject`.

`ImageSets/Segmentation/*.txt` or `ImageSets/Main/*.txt` list the images of a split; without them folders do. An image
that no list names is in no split. In a `SegmentationObject` PNG, the pixels of the xml's n-th object have the value n;
0 is background and 255 an outline, of neither. Coordinates of boxes count pixels from 1, both ends included.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from vision_stack.data.checks.issues import BrokenField, DataError, Findings, Place, Problem, show
from vision_stack.data.checks.segments import LabelMapSplit
from vision_stack.data.readers.coco import CocoSplit
from vision_stack.data.readers.files import Files, stem_of
from vision_stack.data.readers.formats import INSTANCES, Part, Reading, Recognised, by_part, register_format
from vision_stack.data.readers.id_masks import mask_of, read_ids
from vision_stack.data.readers.raw import RawImage, RawObject, RawSplit, ids_by_name, named_classes, read_raw
from vision_stack.data.readers.semantic import Maps, read_maps
from vision_stack.data.readers.xml_file import parse_xml
from vision_stack.structures import WITH_OBJECTS

_OUTLINE = 255
_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip  # by their values in SegmentationClass
_SAME = 0.5  # IoU of a mask's box and the xml's


@register_format("voc")
def recognise(files: Files) -> Recognised | None:
    """xml files with an annotation and boxes."""
    xmls = [name for name, head in files.heads(".xml") if "<annotation" in head and "<bndbox" in head]
    if not xmls:
        return None
    data = _Data(files)
    masks = len(data.masks)
    of_masks = f", {masks:,} masks in SegmentationObject" if masks else ""
    lists = f"; lists in {posixpath.dirname(data.lists[0])}" if data.lists else ""
    return Recognised(
        format="voc",
        what="Pascal VOC",
        how=f"{len(data.xmls):,} .xml files with boxes{of_masks}{lists}",
        tasks=(*(INSTANCES if masks else ("detection",)), *(("semantic",) if data.class_maps else ())),
        splits={part: f"{len(names):,} images" for part, names in data.parts.items()},
        read=partial(_read, data),
    )


@dataclass(eq=False)
class _Data:
    files: Files

    @cached_property
    def xmls(self) -> list[str]:
        return sorted(self.files.of(".xml"))

    @cached_property
    def masks(self) -> dict[str, str]:
        """PNGs of object numbers by stem."""
        return {_stem(name): name for name in self.files.of(".png") if "/SegmentationObject/" in f"/{name}"}

    @cached_property
    def class_maps(self) -> dict[str, str]:
        """PNGs of classes by stem, if there is no table of other classes than Pascal's."""
        own_table = any(posixpath.basename(name) in ("labelmap.txt", "classes.txt") for name in self.files.of(".txt"))
        maps = self.files.of(".png") if not own_table else []
        return {_stem(name): name for name in maps if "/SegmentationClass/" in f"/{name}"}

    @cached_property
    def lists(self) -> list[str]:
        """Of the images with masks, or else of all."""
        texts = [name for name in self.files.of(".txt") if "/ImageSets/" in f"/{name}" and _stem(name) in _SPLITS]
        of_masks = [name for name in texts if "/Segmentation/" in name]
        return of_masks if of_masks and self.masks else [name for name in texts if "/Main/" in name] or texts

    @cached_property
    def parts(self) -> dict[Part, list[str]]:
        """xml files by split."""
        if not self.lists:
            return by_part(self.xmls)
        by_stem = {_stem(name): name for name in self.xmls}
        parts: dict[Part, list[str]] = {}
        for part, names in by_part(sorted(self.lists, key=lambda name: _SPLITS.index(_stem(name)))).items():
            stems = [line.split()[0] for line in self.files.read_text(names[0]).splitlines() if line.strip()]
            if found := [by_stem[stem] for stem in stems if stem in by_stem]:
                parts[part] = found
        return parts

    @cached_property
    def elements(self) -> dict[str, ElementTree.Element | Problem]:
        """Every xml of every split, read."""
        return {name: _parsed(self.files.path(name)) for part in self.parts.values() for name in part}

    @cached_property
    def names(self) -> list[str]:
        """Classes of all splits."""
        roots = [each for each in self.elements.values() if isinstance(each, ElementTree.Element)]
        named = ((item.findtext("name") or "").strip() for root in roots for item in root.iter("object"))
        return sorted({" ".join(name.split()) for name in named} - {""})


_SPLITS = ("train", "val", "valid", "test", "trainval", "default")


def _parsed(path: str) -> ElementTree.Element | Problem:
    try:
        return parse_xml(path)
    except DataError as error:
        return error.problem or Problem(path, "file", str(error), "export it again")


def _stem(name: str) -> str:
    return posixpath.basename(stem_of(name))


def _read(data: _Data, part: Part, reading: Reading) -> CocoSplit | LabelMapSplit:
    if reading.task not in WITH_OBJECTS:
        return _read_class_maps(data, part, reading)
    files, names = data.files, data.parts[part]
    raw = RawSplit(files=files, source="", classes=named_classes(data.names), images=[], objects=lambda: objects)
    images: list[RawImage] = []
    of_image: list[tuple[str, ElementTree.Element]] = []
    for name in names:
        element = data.elements[name]
        if isinstance(element, Problem):
            raw.problems.append(element)
            continue
        stated = (element.findtext("filename") or "").strip()
        folder = posixpath.dirname(name)
        beside = (folder, posixpath.join(posixpath.dirname(folder), "JPEGImages"))
        image = files.image_at(stated, *beside) or files.image_beside(
            *(posixpath.join(each, _stem(name)) for each in beside)
        )
        if image is None or image in data.masks.values():
            raw.problem(
                name, "filename", f"there is no image {show(stated or _stem(name))}", "add it, or remove the xml"
            )
            continue
        images.append(RawImage(image, Place(files.path(name), "size"), _size(element)))
        of_image.append((name, element))
    raw.images = images
    objects = _objects(raw, of_image, data, reading.masks)
    return read_raw(raw, reading)


def _read_class_maps(data: _Data, part: Part, reading: Reading) -> LabelMapSplit:
    files = data.files
    of_photo = {}
    for name in data.parts[part]:
        photo = files.image_beside(
            posixpath.join(posixpath.dirname(posixpath.dirname(name)), "JPEGImages", _stem(name))
        )
        if photo is not None and _stem(name) in data.class_maps:  # most images have none
            of_photo[photo] = data.class_maps[_stem(name)]
    listed = [{"id": value, "name": name} for value, name in enumerate(_CLASSES)]
    ignored = (_OUTLINE,) if reading.ignore_labels is None else reading.ignore_labels
    maps = Maps(str(files.root), listed, ignored, files.root, list(of_photo), lambda name: files.path(of_photo[name]))
    return read_maps(maps, Findings(str(files.root)), on_error=reading.on_error, categories=reading.categories)


def _size(element: ElementTree.Element) -> tuple[int, int]:
    """(height, width); zeros where it is not stated, as some tools write it."""
    sides = [(element.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    height, width = (int(side) if side.isdecimal() and len(side) < 7 else 0 for side in sides)
    return (height, width) if height and width else (0, 0)


def _objects(
    raw: RawSplit, of_image: Sequence[tuple[str, ElementTree.Element]], data: _Data, masks: bool
) -> Iterator[RawObject]:
    ids = ids_by_name(raw.classes)
    for row, (name, element) in enumerate(of_image):
        found: dict[int, RawObject] = {}
        problems = len(raw.problems)
        for number, item in enumerate(element.findall("object"), start=1):
            place = raw.place(name, f"object {number}")
            try:
                category = " ".join((item.findtext("name") or "").split())
                if not category:
                    raise BrokenField("", "has no name", "name its class")
                found[number] = RawObject(row, ids[category], place, box=_box(item))
            except BrokenField as error:
                raw.problem(name, f"object {number}", error.message, error.remedy)
        mask = data.masks.get(_stem(name))
        if masks and mask is not None:
            yield from _with_masks(raw, mask, found, complete=len(raw.problems) == problems)
        else:
            yield from found.values()


def _box(item: ElementTree.Element) -> tuple[float, float, float, float]:
    texts = [item.findtext(f"bndbox/{side}") or "" for side in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x0, y0, x1, y1 = map(float, texts)
    except ValueError:
        message = f"expected numbers xmin, ymin, xmax, ymax, got {show(', '.join(texts))}"
        raise BrokenField("", message, "write the box, or remove the object") from None
    if x1 < x0 or y1 < y0:
        raise BrokenField("", f"box {x0:g}, {y0:g}, {x1:g}, {y1:g} ends before it begins", "correct it")
    return (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1)


def _with_masks(raw: RawSplit, mask: str, objects: Mapping[int, RawObject], *, complete: bool) -> Iterator[RawObject]:
    """The objects with the masks whose boxes are theirs: the n-th has the value n, unless that does not fit.

    Args:
        complete: whether every object of the xml is there; otherwise masks without one are theirs.
    """
    try:
        values = read_ids(raw.files.path(mask))
    except DataError as error:
        raw.problems.append(error.problem or Problem(mask, "pixels", str(error), "export it again"))
        return
    left = dict(objects)
    without: list[int] = []
    for value in np.unique(values).tolist():
        if value in (0, _OUTLINE):
            continue
        pixels = values == value
        box = _bounds(pixels)
        order = sorted(left, key=lambda n: (n != value, -_iou(left[n].box, box)))
        fitting = next((n for n in order if _iou(left[n].box, box) >= _SAME), None)
        if fitting is None:
            without.append(value)
        else:
            yield left.pop(fitting)._replace(rle=mask_of(pixels), box=None)
    if not without:
        yield from left.values()  # to be refused: they have no mask
    elif complete:
        message = f"an object with the value {without[0]} has the box of no object in the xml"
        more = f", and {len(without) - 1:,} more" if len(without) > 1 else ""
        raw.problem(mask, "pixels", f"{message}{more}", "export xml and masks together")


def _bounds(pixels: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = (np.flatnonzero(pixels.any(axis=axis)) for axis in (1, 0))
    return (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)


def _iou(one: tuple[float, float, float, float] | None, other: tuple[float, float, float, float]) -> float:
    assert one is not None
    sides = [max(0.0, min(one[i] + one[i + 2], other[i] + other[i + 2]) - max(one[i], other[i])) for i in (0, 1)]
    common = sides[0] * sides[1]
    return common / max(one[2] * one[3] + other[2] * other[3] - common, 1e-9)
