"""`everymask convert`: the same data set in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from everymask.cli.application import Common

EXAMPLES = """\
  everymask convert train/ train_coco/ --to coco
  everymask convert instances.json masks/ --to label_images --from coco"""


def command(
    source: Path,
    target: Path,
    /,
    *,
    to: str,
    origin: Annotated[str | None, Parameter(name="--from")] = None,
    common: Common = Common(),  # noqa: B008 - frozen, and cyclopts reads the default
) -> None:
    """Rewrite an annotated data set in another format.

    Says what the new format has no place for. Nothing is written if anything goes wrong.

    Args:
        source: Data set: a folder or file in any supported format.
        target: Folder to make; it must not exist or be empty.
        to: Format of the result: coco or label_images.
        origin: Format of the source, where it is not recognised.
    """
    from everymask.cli.output import Output, counted
    from everymask.formats import describe, open_dataset, write_dataset
    from everymask.types import Dataset, Sample

    output = Output(common)
    description = describe(to)
    dataset = open_dataset(source, format=origin)
    with output.progress("converting") as progress:

        def read(index: int) -> Sample:
            progress(index + 1, len(dataset))
            return dataset[index]

        watched = Dataset(read, len(dataset), dataset.categories, dataset.tasks, dataset.format, dataset.root)
        write_dataset(watched, target, to)
    if description.loses:
        output.note(f"{to} has no place for {', '.join(description.loses)}")
    output.hint(f"{counted(len(dataset), 'image')}: {dataset.format} -> {to} in {target}")
    output.result({"images": len(dataset), "from": dataset.format, "to": to, "target": target})
