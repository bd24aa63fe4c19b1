"""Finds JPEGs whose data stop early although the file ends as it should, with an end marker.

Tools that copy or repair files append that marker to what is left. libjpeg then paints the rest grey and gives a
warning, which Pillow does not pass on. What shows it is how the decoder treats more data in place of the marker: it
has no use for them where the image is complete, and takes them for pixels where it is not.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from PIL import Image, ImageFile

_END = b"\xff\xd9"
_MORE = bytes(range(255))  # no 0xFF, which would begin a marker; the 0 first, which makes pixels of one before it
_READ_AHEAD = 16  # bytes that the decoder may want beyond the last pixel
_HUFFMAN = (0xC0, 0xC1, 0xC2)  # frames: baseline, extended, progressive; others cannot be fed piece by piece
_PROGRESSIVE, _SCAN = 0xC2, 0xDA


def refuse_early_end(image: ImageFile.ImageFile) -> None:
    """Make `image.load()` raise OSError where a JPEG's data stop before its last pixel. Nothing is read here.

    Costs nothing where one scan has all components. Otherwise the image is decoded again, unless it is progressive and
    its scans send every bit: then only the last of them can be cut off, the lowest bits of fine detail.
    """
    file = image.fp
    assert file is not None  # open

    def read(_: int) -> bytes:
        data = file.read()  # the second time nothing is left, and Pillow says that the image is truncated
        if not data.endswith(_END):
            return data
        segments = _segments(data)
        frame = next((segment for segment in segments if segment[0] in _HUFFMAN or segment[0] == _SCAN), None)
        if frame is None or frame[0] == _SCAN:
            return data
        marker, content = frame
        scans = (scan for kind, scan in segments if kind == _SCAN)
        if marker != _PROGRESSIVE and next(scans, b"\0")[0] == content[5]:  # the number of components
            return data[: -len(_END)] + _MORE[:_READ_AHEAD]
        whole = marker == _PROGRESSIVE and _all_bits_sent(content, scans)
        if not whole and _pixels(data) != _pixels(data[: -len(_END)] + _MORE + _END):
            raise OSError("image file is truncated, although it has an end marker")
        return data

    image.load_read = read  # type: ignore[attr-defined]  # Pillow's hook, the one that its JPEG reader defines


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment up to the image's end; passes over the pixels' data."""
    position = 2
    while (position := data.find(b"\xff", position)) >= 0 and position + 1 < len(data):
        marker = data[position + 1]
        if marker == _END[1]:
            return
        if marker == 0xFF:  # filling
            position += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD8:  # of pixels' data, or a marker without content
            position += 2
        else:
            length = int.from_bytes(data[position + 2 : position + 4])
            yield marker, data[position + 4 : position + 2 + length]
            position += 2 + max(length, 2)


def _all_bits_sent(frame: bytes, scans: Iterable[bytes]) -> bool:
    """Whether progressive scans bring every coefficient of every component down to its lowest bit."""
    missing = {(component, k) for component in frame[6 : 6 + 3 * frame[5] : 3] for k in range(64)}
    for scan in scans:
        first, last, bits = scan[-3:]
        if bits & 15 == 0:
            missing -= {(component, k) for component in scan[1:-3:2] for k in range(first, last + 1)}
    return not missing


def _pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return image.tobytes()
