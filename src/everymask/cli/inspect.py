"""`everymask inspect`: what is in a data set, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

from everymask.cli.application import Common

EXAMPLES = """\
  everymask inspect train/
  everymask inspect instances.json --json"""

MOST_FINDINGS = 20
"""Findings that are printed; the JSON has all."""


def command(
    path: Path,
    /,
    *,
    format: str | None = None,
    common: Common = Common(),  # noqa: B008 - frozen, and cyclopts reads the default
) -> None:
    """What is in a data set, and what is wrong with it.

    Reads every image and annotation: sizes, number types, objects by category, and whatever looks like a mistake.

    Args:
        path: A folder or file in any supported format.
        format: Its format, where it is not recognised.
    """
    from everymask.cli.output import Output, counted
    from everymask.formats import open_dataset
    from everymask.report.inspection import inspect_dataset

    output = Output(common)
    dataset = open_dataset(path, format=format)
    with output.progress("inspecting") as progress:
        found = inspect_dataset(dataset, progress)
    images = counted(found["images"], "image")
    output.show(f"{path}: {images} in the format {found['format']}, for {', '.join(found['tasks'])}")
    output.rows(
        ("category", "id", "objects", "images", "median area", "smallest", "largest"),
        [
            (each["name"], str(each["id"]), each["objects"], each["images"], *(each[key] for key in AREAS))
            for each in found["categories"]
        ],
    )
    for title, key in (("sizes", "sizes"), ("number types", "types"), ("channels", "channels")):
        often = sorted(found[key].items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} ({count})" for name, count in often[:8])
        output.show(f"{title}: {shown}{', ...' if len(often) > 8 else ''}")
    output.show(f"objects in an image: {found['objects_in_an_image']}")
    findings = found["findings"]
    if not findings:
        output.show("findings: none")
    for each in findings[:MOST_FINDINGS]:
        output.show(f"finding: {each}")
    if len(findings) > MOST_FINDINGS:
        output.show(f"... and {len(findings) - MOST_FINDINGS} more; --json lists all")
    output.result({"path": path, **found})


AREAS = ("median_area", "smallest_area", "largest_area")
