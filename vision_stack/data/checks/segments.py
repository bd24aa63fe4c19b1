"""Images whose annotation is a label map: segments (panoptic) or classes (semantic).

A map becomes one mask per segment or class once the image's transform has moved it, so that losses and matcher see the
same targets as for instances.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vision_stack.data.augment.geometry import GeometricTransform
from vision_stack.data.augment.placing import MaskStride
from vision_stack.data.augment.targets import Objects
from vision_stack.data.checks.issues import Problem, data_error, report
from vision_stack.data.checks.label_files import masks_of, read_class_map, read_colour_map, read_segment_map
from vision_stack.data.image_records import ImageFile
from vision_stack.ops.masks import placed
from vision_stack.structures import Category, PanopticSegmentation, SemanticSegmentation

IGNORE, UNKNOWN = -1, -2  # labels of pixels that say nothing, and of values that no class has


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentTable:
    """The segments of a whole data set as flat arrays, those of one image next to each other."""

    ids: NDArray[np.int32]  # [S] as in the PNG
    labels: NDArray[np.int64]  # [S]
    crowd: NDArray[np.bool_]  # [S]


class PanopticTruth(NamedTuple):
    segmentation: PanopticSegmentation  # scores of 1
    is_crowd: NDArray[np.bool_]  # [N] a group that is neither to be found nor false to find


@dataclass(frozen=True, slots=True, eq=False)
class PanopticRecord(ImageFile):
    """One image and its segments."""

    map_path: str  # PNG of segment ids
    table: SegmentTable
    rows: range  # of the table

    @property
    def num_objects(self) -> int:
        """Segments to be found, that is without crowds."""
        return int(np.count_nonzero(~self._crowd))

    def object_labels(self) -> NDArray[np.int64]:
        """[N] of the segments, without crowds."""
        return self._labels[~self._crowd]

    def objects(
        self, transform: GeometricTransform, chosen: Sequence[int] | None = None, stride: MaskStride = 1
    ) -> Objects:
        """The segments, without crowds."""
        masks = self._masks(transform.label_map(self._read()))
        wanted = np.flatnonzero(~self._crowd)
        wanted = wanted if chosen is None else wanted[np.asarray(chosen, dtype=np.int64)]
        return Objects(self._labels[wanted].tolist(), [placed(masks[n]) for n in wanted.tolist()])

    def truth(self) -> PanopticTruth:
        """The whole annotation, crowds included, as evaluation and pictures take it."""
        segment_map = np.zeros((self.height, self.width), np.int32)
        for number, mask in enumerate(self._masks(self._read()), start=1):
            segment_map[mask] = number
        labels = torch.from_numpy(self._labels.copy())
        segmentation = PanopticSegmentation(torch.from_numpy(segment_map), labels, torch.ones(len(labels)))
        return PanopticTruth(segmentation, self._crowd.copy())

    def check_map(self) -> None:
        """DataError unless the PNG is there, fits the image, and holds exactly the segments that the json lists."""
        found = set(np.unique(self._read()).tolist()) - {0}
        listed = set(self._ids.tolist())
        if found - listed:
            self._unlisted(min(found - listed))
        if listed - found:
            message = f"has no pixel of segment {min(listed - found)}, which the json lists for it"
            raise data_error(self.map_path, "pixels", message, "export PNG and json together, or remove the segment")

    def _read(self) -> NDArray[np.int32]:
        return read_segment_map(self.map_path, self.height, self.width)

    def _masks(self, values: NDArray[np.int32]) -> list[NDArray[np.bool_]]:
        """One mask for each segment, crowds included; DataError if there are others in the map."""
        nothing, *masks = masks_of(values, [0, *self._ids.tolist()])
        if sum(map(np.count_nonzero, masks), np.count_nonzero(nothing)) < values.size:
            self._unlisted(min(set(np.unique(values).tolist()) - {0, *self._ids.tolist()}))
        return masks

    def _unlisted(self, segment: int) -> None:
        message = f"holds segment {segment}, which the json's segments_info does not list"
        raise data_error(self.map_path, "pixels", message, "export PNG and json together")

    @property
    def _ids(self) -> NDArray[np.int32]:
        return self.table.ids[self.rows.start : self.rows.stop]

    @property
    def _labels(self) -> NDArray[np.int64]:
        return self.table.labels[self.rows.start : self.rows.stop]

    @property
    def _crowd(self) -> NDArray[np.bool_]:
        return self.table.crowd[self.rows.start : self.rows.stop]


@dataclass(frozen=True, slots=True, eq=False)
class SemanticRecord(ImageFile):
    """One image and its map of classes."""

    map_path: str
    label_of: NDArray[np.int16]  # [65536] label of each value of the map; IGNORE or UNKNOWN

    @property
    def num_objects(self) -> int:
        """Classes in the image. Reads the label map."""
        return len(self._present(self._read()))

    def objects(
        self, transform: GeometricTransform, chosen: Sequence[int] | None = None, stride: MaskStride = 1
    ) -> Objects:
        """The classes that are left, a mask of each."""
        assert chosen is None, "classes are not chosen from"
        moved = transform.label_map(self._read(), outside=IGNORE)
        labels = self._present(moved)
        return Objects(labels, [placed(mask) for mask in masks_of(moved, labels)])

    def truth(self) -> SemanticSegmentation:
        """The whole annotation, as evaluation and pictures take it."""
        return SemanticSegmentation(torch.from_numpy(self._read().astype(np.int32)))

    def count_values(self) -> NDArray[np.int64]:
        """[V] pixels of each value that the map holds.

        Raises:
            DataError: the map is not there, does not fit the image, or holds a value that is neither a class nor
                ignored.
        """
        counts = np.bincount(self._values().ravel())
        held = np.flatnonzero(counts)
        self._check_known(held, self.label_of[held])
        return counts

    def _read(self) -> NDArray[np.int16]:
        values = self._values()
        labels = self.label_of[values]
        self._check_known(values, labels)
        return labels

    def _values(self) -> NDArray[np.integer]:
        return read_class_map(self.map_path, self.height, self.width)

    def _check_known(self, values: NDArray[np.integer], labels: NDArray[np.int16]) -> None:
        if labels.min() == UNKNOWN:
            message = f"holds the value {values[labels == UNKNOWN][0]}, which no class has"
            remedy = "add the class to the training data's table, or say data.ignore_labels"
            raise data_error(self.map_path, "pixels", message, remedy)

    @staticmethod
    def _present(labels: NDArray[np.int16]) -> list[int]:
        return np.flatnonzero(np.bincount(labels.ravel() - IGNORE)[1:]).tolist()


@dataclass(frozen=True, slots=True, eq=False)
class ColourRecord(SemanticRecord):
    """One image and its map of classes in colours; values are positions among these."""

    colours: NDArray[np.int64]  # sorted R + 256 G + 65536 B

    def _values(self) -> NDArray[np.integer]:
        packed = read_colour_map(self.map_path, self.height, self.width)
        values = np.minimum(np.searchsorted(self.colours, packed), len(self.colours) - 1)
        if (unknown := packed[self.colours[values] != packed]).size:
            colour = int(unknown[0])
            message = f"holds the colour {colour % 256},{colour // 256 % 256},{colour // 65536}, which no class has"
            remedy = "add it to the table of colours, or export the maps without smoothing edges"
            raise data_error(self.map_path, "pixels", message, remedy)
        return values


class TruthByImage(Mapping[int, Any]):
    """image id -> its annotation, read when it is asked for."""

    def __init__(self, records: list[Any]) -> None:
        self._records = {record.image_id: record for record in records}

    def __getitem__(self, image_id: int) -> Any:
        return self._records[image_id].truth()

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._records

    def __iter__(self) -> Iterator[int]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


@dataclass(frozen=True, eq=False)
class LabelMapSplit:
    """A split of a data set: all that is good of it, and what was found to be wrong."""

    annotation_file: str  # the json or the class table
    records: list[Any]  # PanopticRecord or SemanticRecord
    categories: tuple[Category, ...]  # by label
    problems: tuple[Problem, ...] = ()  # images that were skipped, if `on_error` is "skip"
    notes: tuple[Problem, ...] = ()  # what was fixed, and what looks odd
    num_crowds: int = 0
    num_without_mask: ClassVar[int] = 0
    lists_objects: bool = True  # the file says what is in each image; of a class table only label maps do

    def ground_truth(self) -> TruthByImage:
        """The annotations of the records by image id, read when they are asked for."""
        return TruthByImage(self.records)

    def report(self, shown: int = 20) -> str:
        """What was skipped and noted, a line each, for printing; empty if nothing was."""
        return report(self.annotation_file, "broken images", self.problems, self.notes, shown)
