"""`everymask convert`: the same data set in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from everymask.cli.application import Common
from everymask.errors import InputError

EXAMPLES = """\
  everymask convert train/ train_coco/ --to coco
  everymask convert instances.json voc/ --to voc --lossy
  everymask convert instances.json masks/ --to label_images --from coco"""


def command(
    source: Path,
    target: Path,
    /,
    *,
    to: str,
    origin: Annotated[str | None, Parameter(name="--from")] = None,
    split: str | None = None,
    reading: dict[str, str] | None = None,
    writing: dict[str, str] | None = None,
    lossy: bool = False,
    skip_missing: bool = False,
    common: Common = Common(),  # noqa: B008 - frozen, and cyclopts reads the default
) -> None:
    """Rewrite an annotated data set in another format.

    What the new format has no place for is said before anything is written, and then nothing is written unless
    --lossy allows it. After an error or Ctrl-C nothing is left of the target.

    Args:
        source: Data set: a folder or file in any supported format.
        target: Folder to make; it must not exist or be empty.
        to: Format of the result; `everymask formats` lists them.
        origin: Format of the source, where it is not recognised.
        split: Part of the source, such as train; without it all parts.
        reading: Options of the format of the source, such as --reading.images FOLDER.
        writing: Options of the format of the result, such as --writing.kind semantic.
        lossy: Write although the new format has no place for all that the data set holds.
        skip_missing: Leave out images that the annotations name and that are not there.
    """
    from everymask.cli.output import Output, counted
    from everymask.cli.values import option_values
    from everymask.formats import describe, open_dataset, write_dataset
    from everymask.formats.fidelity import find_losses
    from everymask.types import Dataset, Sample

    output = Output(common)
    description = describe(to)
    options = option_values(reading) | ({"missing_images": "skip"} if skip_missing else {})
    dataset = open_dataset(source, format=origin, split=split, **options)
    with output.progress("checking") as progress:
        losses = find_losses(dataset, description, progress)
    if losses and not lossy:
        listed = "; ".join(map(str, losses))
        raise InputError(f"{to} has no place for: {listed}; say --lossy to write {target} without them")
    for each in losses:
        output.note(f"{to} has no place for {each}")
    with output.progress("converting") as progress:

        def read(index: int) -> Sample:
            progress(index + 1, len(dataset))
            return dataset[index]

        watched = Dataset(read, len(dataset), dataset.categories, dataset.tasks, dataset.format, dataset.root)
        write_dataset(watched, target, to, **option_values(writing))
    output.hint(f"{counted(len(dataset), 'image')}: {dataset.format} -> {to} in {target}")
    lost = [{"what": each.what, "images": each.images, "example": each.example} for each in losses]
    output.result({"images": len(dataset), "from": dataset.format, "to": to, "target": target, "lost": lost})
