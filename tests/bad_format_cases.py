"""What attackers, broken disks and other people's programs do to annotations: changes of good data sets."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

Change = Callable[[Path], Any]
Case = tuple[str, Change, tuple[str, ...]]
"""Format, the change of a good data set in it, and words of the message of `everymask convert`."""


# -- changes -----------------------------------------------------------------------------------------------------------


def replaced(file: str, old: str, new: str) -> Change:
    """Replaces a text the first time that it occurs."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf-8")
        assert old in text, (old, text[:300])
        (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def written(file: str, content: bytes | str) -> Change:
    """Replaces a file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(data)


def halved(file: str) -> Change:
    """Cuts a file off in the middle."""
    return lambda folder: (folder / file).write_bytes(
        (folder / file).read_bytes()[: (folder / file).stat().st_size // 2]
    )


def without(file: str) -> Change:
    """Removes a file."""
    return lambda folder: (folder / file).unlink()


def looped(file: str) -> Change:
    """Makes a file a link to itself."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(folder / file)

    return change


def as_folder(file: str) -> Change:
    """Makes a file a folder."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return change


def edited(file: str, edit: Callable[[Any], Any]) -> Change:
    """Changes the content of a JSON."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        edit(content)
        (folder / file).write_text(json.dumps(content), encoding="utf-8")

    return change


def lying_png(size: int = 60_000, colour: int = 0) -> bytes:
    """A PNG of a hundred bytes whose header claims to be `size` x `size`."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", size, size, 8, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def small(file: str) -> Change:
    """Makes an image one of 5 x 5."""
    return lambda folder: Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / file)


def coloured(file: str) -> Change:
    """Makes a mask a picture of many colours."""
    noise = np.random.default_rng(0).integers(0, 255, (26, 34, 3), np.uint8)
    return lambda folder: Image.fromarray(noise).save(folder / file)


def lying_tiff(file: str) -> Change:
    """Makes a TIFF claim to be 60,000 x 60,000 with the pixels of a small one."""

    def change(folder: Path) -> None:
        tifffile.imwrite(folder / file, np.zeros((26, 34), np.uint8))
        with tifffile.TiffFile(folder / file, mode="r+b") as opened:
            for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                opened.pages[0].tags[tag].overwrite(60_000)

    return change


# -- XML ---------------------------------------------------------------------------------------------------------------

LAUGHS = "".join(f'<!ENTITY l{i + 1} "{f"&l{i};" * 10}">' for i in range(9))
BOMBS = {
    "a billion laughs": (f'<!DOCTYPE a [<!ENTITY l0 "lol">{LAUGHS}]>', "&l9;"),
    "quadratic blow-up": (f'<!DOCTYPE a [<!ENTITY a "{"a" * 3000}">]>', "&a;" * 30_000),
    "an external entity": ('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>', "&e;"),
    "an external document type": ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">', ""),
}


def bombed(file: str, bomb: str) -> Change:
    """Puts a document type in front, and what it declares into the first label."""

    def change(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf-8").partition("?>\n")
        head, entity = BOMBS[bomb]
        text_after = (text[2] or text[0]).replace("zebra", f"zebra{entity}", 1)
        (folder / file).write_text(head + text_after, encoding="utf-8")

    return change


XML = {"cvat": "annotations.xml", "voc": "Annotations/im0.xml"}
_MASK = '<mask label="zebra" occluded="0" z_order="0" '
_ELLIPSE = '<ellipse label="zebra" occluded="0" z_order="0" '


def _voc_box(*corners: str) -> Change:
    tags = "".join(
        f"<{tag}>{each}</{tag}>" for tag, each in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    item = f"<object><name>zebra</name><bndbox>{tags}</bndbox></object></annotation>"
    return replaced(XML["voc"], "</annotation>", item)


def _cvat(old: str, new: str) -> Change:
    return replaced(XML["cvat"], old, new)


NAMES = ["../../x.png", "/etc/passwd", "C:/x.png", "C:\\x.png", "a\\b.png", "im0.png/../../x.png", "x" * 300 + ".png"]
"""Names of files that are none below a data set."""

XML_CASES: dict[str, Case] = {
    **{f"{format} with {bomb}": (format, bombed(file, bomb), (file, "document type", "remove"))
       for format, file in XML.items() for bomb in BOMBS},
    **{f"{format} cut off": (format, halved(file), (file, "XML", "again")) for format, file in XML.items()},
    "VOC of no bytes": ("voc", written(XML["voc"], ""), (XML["voc"], "no well-formed XML", "again")),
    "CVAT of no bytes": ("cvat", written(XML["cvat"], ""), ("cannot tell what",)),
    **{f"{format} in Latin-1": (format, lambda folder, file=file: (folder / file).write_bytes(
        (folder / file).read_bytes().replace(b"zebra", b"z\xe4bra")), (file, "XML")) for format, file in XML.items()},
    **{f"{format} with a null": (format, replaced(file, "zebra", "z\0bra"), (file, "XML"))
       for format, file in XML.items()},
    "CVAT in an odd encoding": ("cvat", replaced(XML["cvat"], "utf-8", "utf-7"), ("annotations.xml", "XML")),
    "CVAT nested deep": ("cvat", replaced(XML["cvat"], "</image>", "<a>" * 50_000 + "</a>" * 50_000 + "</image>"),
                         ("annotations.xml", "too deep")),
    "VOC nested deep": (
        "voc", replaced(XML["voc"], "</annotation>", "<a>" * 50_000 + "</a>" * 50_000 + "</annotation>"),
        (XML["voc"], "too deep")),
    "CVAT that is nothing but tags": ("cvat", written(XML["cvat"], "<annotations>" + "<image>" * 90_000),
                                      ("annotations.xml", "XML")),
    **{f"CVAT image {name[:24]}": ("cvat", _cvat('name="im0.png"', f'name="{name}"'), ("annotations.xml", "image 0"))
       for name in [*NAMES, ""]},
    **{f"VOC image {name[:24]}": ("voc", replaced(XML["voc"], "<filename>im0.png", f"<filename>{name}"),
                                  (XML["voc"], "filename")) for name in NAMES},
    "CVAT image of another size": ("cvat", _cvat('width="34"', 'width="99"'), ("im0.png", "26 x 34", "26 x 99")),
    "CVAT image of a billion pixels": (
        "cvat", _cvat('width="34"', 'width="99999999"'), ("annotations.xml", "99999999")),
    "CVAT width that is none": ("cvat", _cvat('width="34"', 'width="1e3"'), ("im0.png", "1e3", "whole numbers")),
    "CVAT point that is none": ("cvat", _cvat('points="', 'points="nan,1;'), ("im0.png", "<polygon> 1", "nan")),
    "CVAT point too large": ("cvat", _cvat('points="', 'points="9e9,1;'), ("im0.png", "<polygon> 1", "1e+08")),
    "CVAT point without y": ("cvat", _cvat('points="1.00,3.00', 'points="1.00'), ("im0.png", "<polygon> 1", "x,y")),
    "CVAT without label": ("cvat", _cvat('label="zebra"', 'label=""'), ("im0.png", "<polygon> 1", "no label")),
    "CVAT z_order": ("cvat", _cvat('z_order="0"', 'z_order="1e9"'), ("im0.png", "z_order", "'1e9'")),
    "CVAT mask larger than the image": (
        "cvat", _cvat("<polygon", f'{_MASK} rle="1,1" left="0" top="0" width="100000" height="100000"/><polygon'),
        ("im0.png", "<mask> 1", "100000 x 100000")),
    "CVAT mask with a run too long": (
        "cvat", _cvat("<polygon", f'{_MASK} rle="0,99999999999" left="0" top="0" width="9" height="9"/><polygon'),
        ("im0.png", "<mask> 1", "does not cover")),
    "CVAT mask with a run of 30 digits": (
        "cvat", _cvat("<polygon", f'{_MASK} rle="0,{"9" * 30}" left="0" top="0" width="9" height="9"/><polygon'),
        ("im0.png", "<mask> 1", "does not cover")),
    "CVAT ellipse larger than any image": (
        "cvat", _cvat("<polygon", f'{_ELLIPSE} cx="1" cy="1" rx="1e300" ry="1"/><polygon'),
        ("im0.png", "<ellipse> 1", "rx")),
    "CVAT image twice": (
        "cvat", _cvat("<image", '<image id="7" name="im0.png" width="34" height="26"/><image'),
        ("annotations.xml", "im0.png is there twice")),
    "CVAT without an image": ("cvat", without("images/im1.png"), ("1 of 3 images", "im1.png", "--skip-missing")),
    "CVAT of a video": (
        "cvat", _cvat("<image", '<track id="0" label="zebra"/><image'), ("CVAT for video", "images 1.1")),
    "VOC box that is none": ("voc", _voc_box("nan", "1", "5", "5"), (XML["voc"], "object 3", "xmin", "'nan'")),
    "VOC box beyond numbers": ("voc", _voc_box("1", "1", "1e400", "5"), (XML["voc"], "object 3", "xmax")),
    "VOC box turned round": ("voc", _voc_box("5", "1", "1", "5"), (XML["voc"], "object 3", "swap")),
    "VOC box outside": ("voc", _voc_box("1", "1", "999", "5"), (XML["voc"], "object 3", "outside")),
    "VOC of another size": ("voc", replaced(XML["voc"], "<width>34", "<width>99"), (XML["voc"], "99", "correct")),
    "VOC width that is none": ("voc", replaced(XML["voc"], "<width>34", "<width>inf"), (XML["voc"], "size/width")),
    "VOC class that is none": ("voc", replaced(XML["voc"], "<name>zebra", "<name>gnu"), (XML["voc"], "gnu", "add it")),
    "VOC without an image": ("voc", without("JPEGImages/im1.png"), ("1 of 3 images", "im1", "--skip-missing")),
    "VOC list of other files": ("voc", written("ImageSets/Main/a.txt", "../../x\n"), ("Main/a.txt", "../../x")),
    "VOC list that is no text": ("voc", written("ImageSets/Main/a.txt", b"\xff\xfe\0"), ("Main/a.txt", "UTF-8")),
    "VOC class twice": ("voc", written("class_names.txt", "_background_\na\na\n"), ("class_names.txt", "unique")),
    "VOC mask of 60,000 x 60,000": ("voc", written("SegmentationObject/im0.png", lying_png()),
                                    ("SegmentationObject/im0.png", "60000 x 60000")),
    "VOC image of 60,000 x 60,000": ("voc", written("JPEGImages/im0.png", lying_png(colour=2)),
                                     ("JPEGImages/im0.png", "60000 x 60000")),
}  # fmt: skip

# -- JSON --------------------------------------------------------------------------------------------------------------

JSON = {"labelme": "im0.json", "label_images": "categories.json", "ade20k": "images/ADE/training/im0.json"}
DEEP = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"


def inserted(file: str, text: str) -> Change:
    """Puts a text behind the first brace."""
    return replaced(file, "{", "{" + text)


def _shape(**values: Any) -> Change:
    return edited("im0.json", lambda content: content["shapes"][0].update(values))


def _labelme(**values: Any) -> Change:
    return edited("im0.json", lambda content: content.update(values))


def _listed(**values: Any) -> Change:
    return written("objects/im0.json", json.dumps(values))


JSON_CASES: dict[str, Case] = {
    **{f"{format} cut off": (format, halved(file), (file,)) for format, file in JSON.items()},
    **{f"{format} of no bytes": (format, written(file, ""), (file,)) for format, file in JSON.items()},
    **{f"{format} that is a list": (format, written(file, "[5]"), (file,)) for format, file in JSON.items()},
    **{f"{format} nested deep": (format, written(file, DEEP), (file,)) for format, file in JSON.items()},
    **{f"{format} with something deep": (format, inserted(file, DEEP[1:-1] + ","), (file,))
       for format, file in JSON.items()},
    **{f"{format} with NaN": (format, inserted(file, '"a":NaN,'), (file,)) for format, file in JSON.items()},
    **{f"{format} with a number of 5,000 digits": (format, inserted(file, f'"a":{"9" * 5000},'), (file,))
       for format, file in JSON.items()},
    **{f"{format} in UTF-16": (format, lambda folder, file=file: (folder / file).write_bytes(
        (folder / file).read_text().encode("utf-16")), (file,)) for format, file in JSON.items()},
    "labelme in Latin-1": ("labelme", lambda folder: (folder / "im0.json").write_bytes(
        (folder / "im0.json").read_bytes().replace(b"zebra", b"z\xe4bra")), ("im0.json", "JSON")),
    "labelme that is a loop": ("labelme", looped("im0.json"), ("im0.json",)),
    "labelme without an image": ("labelme", without("im1.png"), ("1 of 3 images", "im1.png", "--skip-missing")),
    "labelme image elsewhere": (
        "labelme", _labelme(imagePath="../../../etc/passwd"), ("1 of 3 images", "--skip-missing")),
    "labelme image that is a number": ("labelme", _labelme(imagePath=5), ("im0.json", "$.imagePath")),
    "labelme image with a null": ("labelme", _labelme(imagePath="im0.png\0"), ("1 of 3 images", "im0.json")),
    "labelme image of a long name": ("labelme", _labelme(imagePath="x" * 5000 + ".png"), ("1 of 3 images", "im0.json")),
    "labelme image that is none": ("labelme", _labelme(imagePath="no.png", imageData="@@"), ("im0.json", "imageData")),
    "labelme image of 60,000 x 60,000": (
        "labelme", _labelme(imagePath="no.png", imageData=base64.b64encode(lying_png()).decode()),
        ("im0.json", "60000 x 60000")),
    "labelme of another size": ("labelme", _labelme(imageHeight=99), ("im0", "99 x 34", "26 x 34")),
    "labelme of a billion rows": ("labelme", _labelme(imageHeight=10**9, imageWidth=10**9), ("im0.json", "1000000000")),
    "labelme of negative size": ("labelme", _labelme(imageHeight=-5), ("im0.json", "-5 x 34")),
    "labelme without shapes": ("labelme", _labelme(shapes=None), ("im0.json", "$.shapes")),
    "labelme shape that is none": (
        "labelme", edited("im0.json", lambda content: content["shapes"].append(5)), ("im0.json", "$.shapes[2]")),
    "labelme label that is none": ("labelme", _shape(label=None), ("im0.json", "$.shapes[0].label")),
    "labelme of one point": ("labelme", _shape(points=[[1, 2]]), ("im0.json", "$.shapes[0]", "needs 3")),
    "labelme points in 3-D": ("labelme", _shape(points=[[1, 2, 3]] * 3), ("im0.json", "$.shapes[0].points[0]")),
    "labelme points that are text": ("labelme", _shape(points="x"), ("im0.json", "$.shapes[0].points")),
    "labelme point too large": ("labelme", _shape(points=[[1e300, 1], [2, 3], [4, 5]]), ("im0.json", "$.shapes[0]")),
    "labelme shape of another type": ("labelme", _shape(shape_type="blob"), ("im0.json", "$.shapes[0]", "'blob'")),
    "labelme circle larger than any image": (
        "labelme", _shape(shape_type="circle", points=[[0, 0], [9e7, 9e7]]), ("im0.json", "$.shapes[0]", "radii")),
    "labelme mask that is none": ("labelme", _shape(shape_type="mask", mask="!!"), ("im0.json", "$.shapes[0]", "PNG")),
    "labelme mask of 60,000 x 60,000": (
        "labelme", _shape(shape_type="mask", mask=base64.b64encode(lying_png()).decode(), points=[[0, 0], [1, 1]]),
        ("im0.json", "$.shapes[0]", "PNG")),
    "objects of unknown type": ("label_images", _listed(category=["x"]), ("objects/im0.json", "$.category[0]")),
    "objects too few": ("label_images", _listed(category=[1]), ("objects/im0.json", "holds id 2")),
    "objects with too few scores": ("label_images", _listed(category=[1, 2], score=[1]), ("objects/im0.json", "score")),
    **{f"{format} metadata of another kind": (
        format, written("metadata.jsonl", '{"name":"im0"}'), ("metadata.jsonl", "extra"))
       for format in ("voc", "ctc", "image_folder")},
    "metadata nested deep": ("voc", written("metadata.jsonl", f'{{"name":"im0","extra":{DEEP}}}'), ("metadata.jsonl",)),
}  # fmt: skip

# -- text --------------------------------------------------------------------------------------------------------------


def _row(text: str) -> Change:
    return written("labels/im0.txt", text)


def _yaml(text: str) -> Change:
    return written("data.yaml", text)


def _tracks(text: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "01_GT" / "TRA").mkdir()
        for mask in (folder / "01_GT" / "SEG").iterdir():
            shutil.copy(mask, folder / "01_GT" / "TRA" / mask.name.replace("seg", "track"))
        shutil.rmtree(folder / "01_GT" / "SEG")
        (folder / "01_GT" / "TRA" / "man_track.txt").write_text(text)

    return change


YAML_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{one}: &{one} [{','.join([f'*{before}'] * 9)}]\n" for before, one in zip("abcdefghi", "bcdefghij", strict=True)
)

TEXT_CASES: dict[str, Case] = {
    **{f"YOLO row {text[:20]!r}": ("yolo", _row(text), ("labels/im0.txt, line 1", *words)) for text, words in {
        "zebra": ("columns",),
        "0 .5 .5 .2": ("4 columns",),
        "0 .1 .1 .2 .2 .3": ("6 columns",),
        "0 nan .5 .2 .2": ("nan",),
        "0 1e400 .5 .2 .2": ("inf",),
        "0 5 5 2 2": ("coordinate 5", "fractions"),
        "0 .5 .5 -.2 .2": ("width -0.2",),
        "9 .5 .5 .2 .2": ("class 9", "3 names"),
        "-1 .5 .5 .2 .2": ("class -1",),
        "1.5 .5 .5 .2 .2": ("class 1.5",),
        "0 .5 .5 .2 .2\0": ("could not convert",),
        "0" + " .5" * 200_001: ("columns",),
    }.items()},
    "YOLO labels that are no text": ("yolo", written("labels/im0.txt", b"\xff\xfe\0"), ("labels/im0.txt", "text file")),
    "YOLO labels that are a loop": ("yolo", looped("labels/im0.txt"), ("labels/im0.txt",)),
    "YOLO without an image": ("yolo", without("images/im1.png"), ("labels: 1 label files", "im1", "--skip-missing")),
    "YOLO bomb": ("yolo", _yaml(YAML_BOMB + "names: *j\ntrain: images\n"), ("data.yaml", "a text")),
    "YOLO that runs a program": (
        "yolo", _yaml('!!python/object/apply:os.system ["touch pwned"]'), ("cannot tell what",)),
    "YOLO folder elsewhere": ("yolo", _yaml("train: ../../../etc\nnames: [a]\n"), ("data.yaml", "../../../etc")),
    "YOLO folder of the system": ("yolo", _yaml("path: /etc\ntrain: /etc\nnames: [a]\n"), ("data.yaml", "/etc")),
    "YOLO names that are a number": ("yolo", _yaml("train: images\nnames: 3\n"), ("data.yaml", "names is 3")),
    "YOLO names with a gap": ("yolo", _yaml("train: images\nnames: {0: a, 2: b}\n"), ("data.yaml", "names is {0")),
    "YOLO nested deep": ("yolo", _yaml("names: " + "[" * 3000), ("cannot tell what",)),
    "YOLO that is no text": ("yolo", written("data.yaml", b"\xff\xfe\xff"), ("cannot tell what",)),
    **{f"tracks {text!r}": ("ctc", _tracks(text), ("man_track.txt", *words)) for text, words in {
        "1 0 2": ("line 1", "four whole numbers"),
        "1 0 2 x": ("line 1", "four whole numbers"),
        "1 5 2 0": ("line 1", "before the begin"),
        "1 0 2 1": ("line 1", "parent"),
        "1 0 2 9": ("line 1", "parent 9"),
        "1 0 2 0\n1 0 2 0": ("line 2", "line 1 already"),
        "1 0 99999999999 0": ("line 1", "99999999999", "is missing"),
        "0 0 1 0": ("line 1", "background"),
        "": ("holds the label 1",),
    }.items()},
    **{f"colours {text!r}": ("segmentation_mask", written("labelmap.txt", text), ("labelmap.txt", *words))
       for text, words in {
        "zebra:1,2::": ("line 1", "got 'zebra:1,2::'"),
        "zebra:300,1,1::": ("line 1", "0..255"),
        "zebra:1,2,3::\nant:1,2,3::": ("line 2", "another class"),
        "zebra:1,2,3::\nzebra:4,5,6::": ("unique",),
        "zebra:1,2,3::": ("im0.png", "no class", "add it"),
    }.items()},
}  # fmt: skip

# -- pictures ----------------------------------------------------------------------------------------------------------

MASKS = {
    "label_images": "masks/im0.png",
    "voc": "SegmentationObject/im0.png",
    "segmentation_mask": "SegmentationClass/im0.png",
    "ade20k": "images/ADE/training/im0_seg.png",
    "cityscapes": "gtFine/train/im0/im0_000000_000019_gtFine_instanceIds.png",
    "coco_panoptic": "panoptic/im0.png",
    "coco_stuff": "stuffthingmaps/im0.png",
    "ctc": "01_GT/SEG/man_seg000.tif",
}
IMAGES = {
    "cvat": "images/im0.png",
    "voc": "JPEGImages/im0.png",
    "yolo": "images/im0.png",
    "labelme": "im0.png",
    "image_folder": "zebra/im0.png",
    "label_images": "images/im0.png",
    "ade20k": "images/ADE/training/im0.png",
}

PICTURE_CASES: dict[str, Case] = {
    f"{format} {what} {wrong}": (format, change(file), (Path(file).name, *words))
    for what, files in (("mask", MASKS), ("image", IMAGES))
    for format, file in files.items()
    for wrong, change, words in (
        ("of no bytes", lambda file: written(file, ""), ("0 bytes", "again")),
        ("that is text", lambda file: written(file, "to do\n"), ()),
        ("of 60,000 x 60,000", lambda file: written(file, lying_png(colour=2)), ("60000 x 60000",)),
        ("that is a loop", looped, ()),
        *(
            (("cut off", halved, ("again",)), ("of another size", small, ("5 x 5", "26 x 34")))
            if what == "mask"
            else ()
        ),
    )
    # These have colours for numbers, which the small one lacks; Cityscapes is told by the names of its files.
    if wrong != "of another size" or format not in {"ade20k", "coco_panoptic"}
    if wrong != "that is a loop" or format not in {"cityscapes", "image_folder"}
}
PICTURE_CASES |= {
    "label_images TIFF of 60,000 x 60,000": ("ctc", lying_tiff("01_GT/SEG/man_seg000.tif"), ("man_seg000", "60000")),
    "label_images of colours": ("label_images", coloured("masks/im0.png"), ("masks/im0.png", "colour")),
    "VOC of colours": ("voc", coloured("SegmentationClass/im0.png"), ("SegmentationClass/im0.png", "no class")),
}


def link_loops(folder: Path) -> None:
    """Links each folder into itself and into the one above."""
    for below in [folder, *(each for each in sorted(folder.rglob("*")) if each.is_dir())]:
        (below / "zz_again").symlink_to(folder, target_is_directory=True)
