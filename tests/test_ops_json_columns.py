"""The compiled JSON scanner against the standard library's parser: numbers, columns, and what it must refuse."""

from __future__ import annotations

import json
import math
import random
import re
import struct
from typing import Any

import numpy as np
import pytest

from everymask.ops import json_outlines, json_text, rle
from everymask.ops.json_columns import Field, Kind, Objects, scan_array
from everymask.ops.json_numbers import MALFORMED, parse_integer, parse_number, skip_number

mask_api = pytest.importorskip("pycocotools.mask")

FIELDS = (
    Field("id", Kind.INTEGER),
    Field("box", Kind.FOUR_NUMBERS, nullable=True),
    Field("score", Kind.NUMBER, nullable=True),
    Field("crowd", Kind.FLAG),
    Field("name", Kind.TEXT),
    Field("shape", Kind.VALUE, nullable=True),
    Field("more", Kind.OBJECT, nullable=True),
    Field("image", Kind.IDENTIFIER),
)


def data(text: str | bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)


# -- numbers -----------------------------------------------------------------------------------------------------------


def parsed(text: str) -> float | None:
    """The number by the compiled parser, or by Python where that says so; None if it refuses the text."""
    at, bits, certain = parse_number(data(text + "]"), 0)
    if at == MALFORMED or at != len(text):
        return None
    assert skip_number(data(text + "]"), 0) == at
    return struct.unpack("<d", struct.pack("<Q", int(bits)))[0] if certain else float(text)


def check_exact(text: str) -> bool:
    """Asserts that a number is read exactly; whether the compiled parser did it alone."""
    value = parsed(text)
    assert value is not None
    assert struct.pack("<d", value) == struct.pack("<d", float(text)), text
    return bool(parse_number(data(text + "]"), 0)[2])


def test_numbers_of_every_kind_are_the_nearest_doubles() -> None:
    generator = random.Random(3)
    alone = 0
    for _ in range(20_000):
        bits = generator.getrandbits(64)
        value = struct.unpack("<d", struct.pack("<Q", bits))[0]
        if math.isfinite(value):
            alone += check_exact(repr(value))
        alone += check_exact(repr(generator.random()))
        alone += check_exact(repr(round(generator.uniform(-2000, 2000), generator.randrange(8))))
        digits = str(generator.getrandbits(generator.randrange(1, 64)))
        check_exact(f"{digits}e{generator.randrange(-345, 309 - len(digits))}")
    assert alone > 59_000  # else it would be of no use


def test_exact_ties_and_their_neighbours() -> None:
    generator = random.Random(4)
    for _ in range(5_000):
        # Halfway between two doubles: one bit more than fits, times a small power of two.
        odd = (generator.getrandbits(53) | 1 << 53) * 2 + 1
        for number in (odd - 1, odd, odd + 1):
            check_exact(str(number))
        power = generator.randrange(1, 5)
        tie = (generator.getrandbits(53) | 1 << 53 | 1) / 1
        check_exact(f"{int(tie) * 5**power}e-{power}")
        small = generator.getrandbits(10) * 2 + 1
        check_exact(f"{small * (1 << 53) + 1}")


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-0",
        "-0.0",
        "0.0000000000000000000000000000000000000000000000001",
        "0.00000000000000000000000000000000000000000000000012345678901234567891",
        "123456789012345678901234567890",
        "1.7976931348623157e308",
        "4.9e-324",
        "2.2250738585072011e-308",
        "2.2250738585072014e-308",
        "2.4703282292062327e-324",
        "1e-400",
        "9007199254740993",
        "9007199254740992.5",
        "1E5",
        "1e+05",
        "1.0e-05",
        "18446744073709551615",
        "0e999999999999999999999",
        "8.5e+22",
        "1e23",
        "9.5e-20",
    ],
)
def test_numbers_that_are_hard(text: str) -> None:
    check_exact(text)
    check_exact("-" + text.removeprefix("-"))


def test_too_large_is_left_to_python() -> None:
    assert not parse_number(data("1e309]"), 0)[2]
    assert scan_array(data('[{"score": 1e309}]'), 0, FIELDS) is None


@pytest.mark.parametrize(
    "text", ["01", "-", "+1", ".5", "1.", "1.e5", "1e", "1e+", "--1", "-01", "NaN", "Infinity", "1e5.5"]
)
def test_what_is_no_number(text: str) -> None:
    assert parsed(text) is None
    with pytest.raises(ValueError, match=r".+"):
        json.loads(text, parse_constant=lambda name: pytest.fail(name) if text != name else int("x"))
    assert skip_number(data(text + "]"), 0) != len(text)


def test_integers() -> None:
    for text in ("0", "-0", "7", "-123", "9223372036854775807", "-9223372036854775807"):
        assert parse_integer(data(text + "}"), 0) == (len(text), int(text))
    for text in ("9223372036854775808", "99999999999999999999", "1.0", "1e2", "01", "-", "x"):
        assert parse_integer(data(text + "}"), 0)[0] == MALFORMED


# -- columns -----------------------------------------------------------------------------------------------------------

TEXTS = ["", "a", "\\", '"', "/", "\n\t", "€äß", "😀", "}, {", '[{"id": 1}]', "\x7f", "null"]


def value(generator: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = generator.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return generator.choice([None, True, False])
    if kind == 1:
        return generator.randrange(-(10 ** generator.randrange(1, 25)), 10**18)
    if kind in (2, 3):
        return generator.uniform(-1, 1) * 10.0 ** generator.randrange(-300, 300)
    if kind in (4, 5):
        return "".join(generator.choice(TEXTS) for _ in range(generator.randrange(4)))
    if kind == 6:
        return {
            generator.choice([*TEXTS, "x", "id"]): value(generator, depth + 1) for _ in range(generator.randrange(4))
        }
    return [value(generator, depth + 1) for _ in range(generator.randrange(5))]


def number(generator: random.Random) -> float | int:
    return generator.choice(
        [
            generator.random() * 640,
            round(generator.random() * 640, 2),
            generator.randrange(-9, 1000),
            generator.uniform(-1, 1) * 10.0 ** generator.randrange(-320, 300),
        ]
    )


def entry(generator: random.Random) -> dict[str, Any]:
    """An object with any of the fields, in any order, and others between."""
    fields: dict[str, Any] = {
        "id": generator.randrange(-(2**62), 2**62),
        "box": generator.choice([None, [number(generator) for _ in range(4)]]),
        "score": generator.choice([None, number(generator), number(generator)]),
        "crowd": generator.choice([0, 1, True, False, 7]),
        "name": generator.choice(TEXTS) + generator.choice(TEXTS),
        "shape": value(generator),
        "more": generator.choice([None, {}, {"a": [1, {"b": None}]}]),
        "image": generator.choice([3, -4, *TEXTS]),
        **{generator.choice(["x", "idd", "i", "Id", "ﬁeld", ""]): value(generator) for _ in range(2)},
    }
    chosen = generator.sample(sorted(fields), generator.randrange(len(fields) + 1))
    return {name: fields[name] for name in chosen}


def dumped(content: Any, generator: random.Random, ascii_only: bool) -> str:
    """JSON with odd white space."""

    def space() -> str:
        return generator.choice(["", "", "", " ", "\n", "\t", "\r\n  "])

    if isinstance(content, dict):
        members = [
            f"{space()}{json.dumps(key, ensure_ascii=ascii_only)}{space()}:{dumped(each, generator, ascii_only)}"
            for key, each in content.items()
        ]
        text = "{" + ",".join(members) + space() + "}"
    elif isinstance(content, list):
        text = "[" + ",".join(dumped(each, generator, ascii_only) for each in content) + space() + "]"
    else:
        text = json.dumps(content, ensure_ascii=ascii_only)
    return space() + text + space()


def check(objects: Objects, expected: list[dict[str, Any]], text: bytes) -> None:
    """Asserts that columns hold what `json.loads` gives."""
    assert len(objects) == len(expected)
    spans = objects.spans()
    for row, entry in enumerate(expected):
        assert json.loads(text[spans[row, 0] : spans[row, 1]]) == entry
        for field in FIELDS:
            there = entry.get(field.name) is not None
            assert objects.present(field.name)[row] == there, (field, entry)
            found = objects.numbers(field.name)[row] if field.kind in (Kind.NUMBER, Kind.FOUR_NUMBERS) else None
            if found is not None:
                wanted = entry[field.name] if there else np.nan
                np.testing.assert_array_equal(found, np.array(wanted, np.float64) + np.zeros_like(found))
            elif there and field.kind in (Kind.INTEGER, Kind.FLAG):
                assert objects.integers(field.name)[row] == int(entry[field.name])
            elif there and field.kind in (Kind.VALUE, Kind.TEXT):
                begin, end = objects.integers(field.name)[row]
                assert json.loads(text[begin:end]) == entry[field.name]
            elif there and field.kind == Kind.IDENTIFIER:
                textual = isinstance(entry["image"], str)
                assert objects.textual("image")[row] == textual
                begin = objects.integers("image")[row]
                if textual:
                    assert json_text.texts(data(text), np.array([begin])) == [entry["image"]]
                else:
                    assert begin == entry["image"]
        assert objects.others()[row] == bool(set(entry) - {field.name for field in FIELDS})


def test_columns_are_what_the_standard_parser_gives() -> None:
    for seed in range(400):
        generator = random.Random(seed)
        content = [entry(generator) for _ in range(generator.randrange(12))]
        ascii_only = seed % 2 == 0
        text = dumped(content, generator, ascii_only).strip().encode()
        for threads, chunk in ((1, 1 << 20), (2, 60)):
            found = scan_array(data(text), 0, FIELDS, threads=threads, chunk=chunk)
            if ascii_only and any("ﬁeld" in each for each in content):
                assert found is None  # an escape in a key
                continue
            assert found is not None
            assert found[1] == len(text)
            check(found[0], json.loads(text), text)


@pytest.mark.parametrize("chunk", [1, 7, 50, 333])
def test_chunks_that_begin_in_strings(chunk: int) -> None:
    """What looks like the start of an element within a string or a nested array is none."""
    generator = random.Random(chunk)
    content = [
        {"id": i, "name": '}, {"id": 5}, {' * generator.randrange(3), "x": [{}, {"id": 2}, {}]} for i in range(300)
    ]
    text = json.dumps(content, indent=generator.choice([None, 1])).encode()
    found = scan_array(data(text), 0, FIELDS, threads=3, chunk=chunk)
    assert found is not None
    check(found[0], content, text)


def test_damaged_texts_are_refused_or_read_alike() -> None:
    """One byte changed, removed or added: what the scanner accepts, `json.loads` accepts, too, with the same values."""
    generator = random.Random(8)
    refused = accepted = 0
    for _ in range(6_000):
        entries = [entry(generator) for _ in range(3)]
        text = bytearray(dumped(entries, generator, False).strip().encode())
        at = generator.randrange(1, len(text) - 1)
        kind = generator.randrange(3)
        if kind == 0:
            text[at] = generator.choice(b'{}[]",:0123456789.-+eE \n\\ntfu\x00\x1f\xff\x80')
        elif kind == 1:
            del text[at]
        else:
            text.insert(at, generator.choice(b'{}[]",:09.-eE \\\x00\xc3'))
        found = scan_array(data(bytes(text)), 0, FIELDS)
        if found is None or found[1] != len(text):
            refused += 1
            continue
        # Arrays of numbers that are skipped are not looked into; all else must be JSON.
        try:
            expected = json.loads(bytes(text), parse_constant=lambda name: pytest.fail(f"{name} was accepted"))
        except ValueError:
            assert skipped_numbers_are_to_blame(bytes(text)), text
            continue
        accepted += 1
        if not repeats_a_key(bytes(text)):
            check(found[0], expected, bytes(text))
    assert refused > 2_000
    assert accepted > 500


def skipped_numbers_are_to_blame(text: bytes) -> bool:
    """Whether a text is JSON once its arrays of what numbers are made of are emptied."""
    emptied = text
    while True:
        shorter = re.sub(rb"\[[0-9.\-+eE, \t\r\n]+\]", b"[]", emptied)
        shorter = re.sub(rb"\[(\[\][, \t\r\n0-9.\-+eE]*)+\]", b"[]", shorter)
        if shorter == emptied:
            break
        emptied = shorter
    try:
        json.loads(emptied)
    except ValueError:
        return False
    return True


def repeats_a_key(text: bytes) -> bool:
    repeated = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.extend([1] if len({key for key, _ in items}) < len(items) else [])
        return dict(items)

    json.loads(text, object_pairs_hook=pairs)
    return bool(repeated)


@pytest.mark.parametrize(
    "text",
    [
        '[{"id": 1.0}]',
        '[{"id": "1"}]',
        '[{"id": null}]',
        '[{"id": 99999999999999999999}]',
        '[{"\\u0069d": 1}]',
        '[{"box": [1, 2, 3]}]',
        '[{"box": [1, 2, 3, 4, 5]}]',
        '[{"box": [1, 2, 3, null]}]',
        '[{"box": {}}]',
        '[{"score": "1"}]',
        '[{"score": true}]',
        '[{"crowd": null}]',
        '[{"name": 1}]',
        '[{"more": []}]',
        '[{"image": 1.5}]',
        '[{"image": null}]',
        '[{"id": 1},]',
        '[{"id": 1,}]',
        '[{"id": 1}, 2]',
        "[1]",
        '[{"id" 1}]',
        '[{"id": 1]',
        '[{"id": 1}',
        '[{"x": "\\ud800"}]',
        '[{"x": "\\ud800\\u0041"}]',
        '[{"x": "\\x"}]',
        '[{"x": "\n"}]',
        '[{"x": [1, tru]}]',
        '[{"x": ' + "[" * 70 + '"a"' + "]" * 70 + "}]",
        b'[{"x": "\xff"}]',
        b'[{"\xff": 1}]',
    ],
)
def test_what_is_refused(text: str | bytes) -> None:
    assert scan_array(data(text), 0, FIELDS) is None


def test_the_last_of_equal_keys_counts() -> None:
    found = scan_array(data('[{"id": 1, "score": 2, "id": 3, "score": null}]'), 0, FIELDS)
    assert found is not None
    assert found[0].integers("id").tolist() == [3]
    assert np.isnan(found[0].numbers("score")).all()


def visited(text: str) -> tuple[int, dict[str, str]]:
    """Where an object ends, and its members."""
    seen: dict[str, str] = {}

    def visit(key: str, at: int) -> int:
        end = int(json_text.skip_value(data(text), at))
        seen[key] = text[at:end]
        return end

    return json_text.members(data(text), 0, visit), seen


def test_members() -> None:
    text = '{"a" : 1, "b":[2, {"c": "}"}] ,"":null }'
    assert visited(text) == (len(text), {"a": "1", "b": '[2, {"c": "}"}]', "": "null"})
    assert visited("{}") == (2, {})
    for wrong in ('{"a" 1}', '{"a": 1,}', '{"a": 1 "b": 2}', "{1: 2}", '{"a": }', '{"a": [1}'):
        assert visited(wrong)[0] == json_text.NOT_UNDERSTOOD


# -- segmentations -----------------------------------------------------------------------------------------------------


def spans(parts: list[str]) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, np.dtype[np.int64]]]:
    """A text that holds all parts, and where each is."""
    ends = np.cumsum([1, *(len(part.encode()) + 1 for part in parts)])
    return data("[" + ",".join(parts) + "]"), np.stack([ends[:-1], ends[1:] - 1], axis=1)


def test_kinds_of_segmentations() -> None:
    parts = [
        "[]",
        "[ ]",
        "[[1, 2]]",
        '{"counts": "a"}',
        '{ "size": [1, 2], "counts" : [3] }',
        '"x"',
        "{}",
        "7",
        '{"size": {"counts": 1}}',
    ]
    text, places = spans(parts)
    kinds = json_outlines.segmentation_kinds(text, places, np.ones(len(parts), np.bool_))
    nothing, polygons, string, lengths = 0, 1, 2, 3
    assert kinds.tolist() == [nothing, nothing, polygons, string, lengths, polygons, lengths, polygons, lengths]
    assert not json_outlines.segmentation_kinds(text, places, np.zeros(len(parts), np.bool_)).any()


def test_polygons() -> None:
    generator = random.Random(5)
    content = [
        [[number(generator) for _ in range(generator.randrange(9))] for _ in range(generator.randrange(1, 4))]
        for _ in range(50)
    ]
    for separators in ((",", ":"), (" ,\n ", ":")):
        text, places = spans([json.dumps(each, separators=separators) for each in content])
        numbers, rings, segments, wrong = json_outlines.read_polygons(text, places)
        if wrong >= 0:  # a number below the normal range is left to Python
            assert any(0 < abs(each) < 1e-307 for ring in content[wrong] for each in ring)
            places = np.delete(places, wrong, axis=0)
    content = [
        [[round(each, 3) for each in ring if abs(each) > 1e-5 and abs(each) < 1e9] for ring in each] for each in content
    ]
    text, places = spans([json.dumps(each) for each in content])
    numbers, rings, segments, wrong = json_outlines.read_polygons(text, places)
    assert wrong == -1
    assert segments.tolist() == np.cumsum([0, *map(len, content)]).tolist()
    flat = [ring for each in content for ring in each]
    assert rings.tolist() == np.cumsum([0, *map(len, flat)]).tolist()
    assert numbers.tolist() == [each for ring in flat for each in ring]


@pytest.mark.parametrize(
    "part",
    [
        "[[1, 2,]]",
        "[[1 2]]",
        "[[1, 2],]",
        "[[1, 2][3]]",
        "[1, 2]",
        '[["1"]]',
        "[[1, null]]",
        "[[1..2]]",
        "[[01]]",
        '"x"',
        "[[[1]]]",
        "[[1,,2]]",
    ],
)
def test_what_is_no_polygon(part: str) -> None:
    text, places = spans(["[[1, 2, 3]]", part, "[[4]]"])
    assert json_outlines.read_polygons(text, places)[3] == 1


def escaped(string: str, generator: random.Random) -> str:
    """A JSON string, some characters of it escaped in one of the ways that are allowed."""
    made = []
    for character in string:
        ways = [json.dumps(character)[1:-1], f"\\u{ord(character):04x}", f"\\u{ord(character):04X}"]
        made.append(generator.choices(["\\/" if character == "/" else ways[0], *ways[1:]], [20, 1, 1])[0])
    return '"' + "".join(made) + '"'


def test_run_lengths() -> None:
    generator = random.Random(6)
    arrays = np.random.default_rng(6)
    parts, sizes, wanted = [], [], []
    for _ in range(200):
        height, width = generator.randrange(1, 60), generator.randrange(1, 60)
        mask = np.asfortranarray(arrays.random((height, width)) > generator.random(), np.uint8)
        compressed = mask_api.encode(mask)
        if generator.random() < 0.5:
            counts = rle.from_string(compressed["counts"]).tolist()
            entry = f'"counts" : {json.dumps(counts)}'
        else:
            entry = f'"counts":{escaped(compressed["counts"].decode(), generator)}'
        members = [entry, f'"size": [{height} , {width}]', '"x": {"counts": [[], "]"]}']
        generator.shuffle(members)
        parts.append("{" + ", ".join(members) + "}")
        sizes.append((height, width))
        wanted.append(compressed["counts"])
    text, places = spans(parts)
    counts, offsets, wrong = json_outlines.read_runs(text, places, np.array(sizes))
    assert wrong == -1
    assert rle.to_strings(counts, offsets) == wanted


@pytest.mark.parametrize(
    "part",
    [
        '{"size": [2, 3], "counts": [5]}',
        '{"size": [2, 3], "counts": [7]}',
        '{"size": [2, 3], "counts": [-1, 7]}',
        '{"size": [2, 3], "counts": [6.0]}',
        '{"size": [2, 3], "counts": [6,]}',
        '{"size": [2, 3], "counts": [3 3]}',
        '{"size": [2, 3], "counts": ["6"]}',
        '{"size": [2, 3], "counts": "é"}',
        '{"size": [2, 3], "counts": "P"}',
        '{"size": [2, 3], "counts": 6}',
        '{"size": [3, 2], "counts": [6]}',
        '{"size": [2], "counts": [6]}',
        '{"size": [2, 3, 1], "counts": [6]}',
        '{"size": "2", "counts": [6]}',
        '{"counts": [6]}',
        '{"size": [2, 3]}',
    ],
)
def test_what_are_no_run_lengths(part: str) -> None:
    good = '{"size": [2, 3], "counts": [6]}'
    text, places = spans([good, part, good])
    assert json_outlines.read_runs(text, places, np.array([[2, 3]] * 3))[2] == 1
