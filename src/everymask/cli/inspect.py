"""`everymask inspect`: what is in a data set, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from everymask.cli.application import Common

EXAMPLES = """\
  everymask inspect train/
  everymask inspect VOC2012/ --split val --sheet overview.png
  everymask inspect instances.json --no-images --json"""

MOST_FINDINGS = 20
"""Findings that are printed; the JSON has all."""
MOST_BARS = 12


def command(
    path: Path,
    /,
    *,
    format: str | None = None,
    split: str | None = None,
    reading: dict[str, str] | None = None,
    images: bool = True,
    sheet: Path | None = None,
    common: Common = Common(),  # noqa: B008 - frozen, and cyclopts reads the default
) -> None:
    """What is in a data set, and what is wrong with it.

    Reads every image and annotation: objects by category and part, sizes, areas, and whatever looks like a mistake,
    with what mends it: duplicates, parts that share images, ids and coordinates off by one, masks of 0 and 255, boxes
    outside of the image, empty, tiny and double objects, polygons that fill their holes, unused categories, void.

    Args:
        path: A folder or file in any supported format.
        format: Its format, where it is not recognised.
        split: Part to look at, such as train; without it all parts.
        reading: Options of the format, such as --reading.images FOLDER.
        images: Read the images, too; without, only the annotations are checked, which is faster.
        sheet: PNG to write: overlays of a few images.
    """
    from everymask.cli.output import Output, counted
    from everymask.cli.values import option_values
    from everymask.formats import has_option, open_dataset, recognise
    from everymask.report.inspection import bars, inspect_dataset
    from everymask.report.inspection import sheet as draw_sheet
    from everymask.report.picture import save_png

    output = Output(common)
    options: dict[str, Any] = option_values(reading)
    name = format or recognise(path)
    if has_option(name, "missing_images"):
        options.setdefault("missing_images", "keep")  # each is a finding
    dataset = open_dataset(path, format=format, split=split, **options)
    with output.progress("inspecting") as progress:
        found = inspect_dataset(dataset, progress, images=images)
    number = counted(found["images"], "image")
    output.show(f"{path}: {number} in the format {found['format']}, for {', '.join(found['tasks'])}")
    parts = list(found["splits"]) if len(found["splits"]) > 1 else []
    if parts:
        output.show("parts: " + ", ".join(f"{part or 'none'} ({found['splits'][part]:,})" for part in parts))
    output.rows(
        ("category", "id", "objects", *(f"in {part or 'none'}" for part in parts), "images", *map(_words, AREAS)),
        [
            (
                each["name"],
                str(each["id"]),
                each["objects"],
                *(each["splits"].get(part, 0) for part in parts),
                each["images"],
                *(each[key] for key in AREAS),
            )
            for each in found["categories"]
        ],
    )
    for title, key in (("number types", "types"), ("channels", "channels")):
        if found[key]:
            output.show(f"{title}: {', '.join(f'{name} ({count})' for name, count in found[key].items())}")
    output.show(f"objects in an image: {found['objects_in_an_image']}")
    if found["void"]:
        output.show(f"void: {found['void']:.1%} of the pixels")
    often = sorted(found["sizes"].items(), key=lambda item: -item[1])
    if len(often) == 1:
        output.show(f"sizes: {often[0][0]} ({often[0][1]})")
    elif often:
        left = sum(count for _, count in often[MOST_BARS:])
        shown = dict(often[:MOST_BARS]) | ({"others": left} if left else {})
        output.rows(("size", "images", ""), bars(shown))
    if found["areas"]:
        ranges = {f"{int(low):,} to {2 * int(low) - 1:,}": count for low, count in found["areas"].items()}
        output.rows(("area in pixels", "objects", ""), bars(ranges))
    findings = found["findings"]
    if not findings:
        output.show("findings: none")
    for each in findings[:MOST_FINDINGS]:
        output.show(f"finding: {each['message']}")
    if len(findings) > MOST_FINDINGS:
        output.show(f"... and {len(findings) - MOST_FINDINGS} more; --json lists all")
    if sheet is not None:
        save_png(sheet, draw_sheet(dataset))
        output.hint(f"sheet  {sheet}")
    output.result({"path": path, **found})


AREAS = ("median_area", "smallest_area", "largest_area")


def _words(name: str) -> str:
    return name.replace("_", " ").removesuffix(" area") if not name.startswith("median") else "median area"
