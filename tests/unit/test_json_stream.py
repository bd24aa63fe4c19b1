"""A json read in pieces is the one read as a whole, wherever the pieces end."""

import json
import math
from collections import Counter

import pytest

from vision_stack.data.readers import json_file, json_stream
from vision_stack.data.readers.json_file import load_coco_json
from vision_stack.data.readers.json_stream import NotStreamed, stream_json

ODD = [
    12345,
    {},
    {"segmentation": {"size": [1, 2], "counts": "}{"}, "text": 'a "}" in it'},
    {"many": [{"braces": {"in": {}}}] * 9},
    {"beyond": 1e999, "number": math.inf, "other": 2**70},
]
DOCUMENT = {
    "info": {"text": 'a "quoted" [bracket], {brace}'},
    "annotations": [
        {"id": n, "category_id": n % 4, "segmentation": [[1.5 * n, -2e3, 0.25]], "name": "é\\u0001"} for n in range(9)
    ]
    + ODD,
    "images": [{"id": 1}, {"id": 2}],
    "licenses": [],
    "categories": [{"id": 3, "name": "x"}],
    "number": 1234567,
}


@pytest.mark.parametrize("loads", [json_stream.loads, json.loads])
@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 100_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_pieces_of_any_length_give_the_whole(tmp_path, monkeypatch, chunk, indent, loads):
    monkeypatch.setattr(json_stream, "loads", loads)
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    file = tmp_path / "a.json"
    file.write_text("\ufeff" + json.dumps(DOCUMENT, indent=indent), encoding="utf-8")
    found = stream_json(str(file))
    annotations = found.pop("annotations")
    assert len(annotations) == 9 + len(ODD)
    assert annotations.category_ids == Counter(n % 4 for n in range(9))
    assert [list(annotations) for _ in range(2)] == [DOCUMENT["annotations"]] * 2
    assert found == {key: value for key, value in DOCUMENT.items() if key != "annotations"}


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{}", '{"a": 1', '{"a": 1} 2', '{"annotations": [1, 2}', '{"annotations": [1 2]}', '{"a": 1, "a": 2}'],
)
def test_anything_else_is_left_to_reading_the_whole(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(NotStreamed):
        stream_json(str(file))


def test_large_files_are_streamed_and_broken_ones_say_where(tmp_path, monkeypatch):
    monkeypatch.setattr(json_file, "LARGE", 0)
    file = tmp_path / "a.json"
    file.write_text(json.dumps(DOCUMENT))
    assert isinstance(load_coco_json(str(file), streamed=True)["annotations"], json_stream.Annotations)
    assert load_coco_json(str(file))["annotations"] == DOCUMENT["annotations"]
    file.write_text(json.dumps(DOCUMENT)[:-30])
    with pytest.raises(ValueError, match=r"not valid json: .* in line 1"):
        load_coco_json(str(file), streamed=True)
