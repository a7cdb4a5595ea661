"""`everymask compare`: several methods trained on the same images, in one table."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from everymask.cli.application import Common

if TYPE_CHECKING:
    from everymask.report.methods import Entry

EXAMPLES = """\
  everymask compare stardist cellpose omnipose --data cells/train --val cells/val --minutes 20 --out comparison/
  everymask compare "unet --backbone resnet34" pspnet --data street/train --val street/val --epochs 60 --out comparison/
  everymask compare stardist "stardist --rays 64 --grid 1" --data cells/ --minutes 10 --out comparison/"""


def command(
    methods: list[str],
    /,
    *,
    data: Path,
    out: Path,
    val: Path | None = None,
    minutes: float | None = None,
    epochs: int | None = None,
    format: str | None = None,
    resume: bool = False,
    common: Common = Common(),  # noqa: B008 - frozen, and cyclopts reads the default
) -> None:
    """Train several methods on the same images and score them side by side.

    Each is trained by `everymask train` in a process of its own, one after the other, and scored on the validation
    images. Writes comparison.html, comparison.csv and comparison.json into the output folder, and beside them a folder
    with the run of each method.

    Args:
        methods: Names that `everymask methods` lists; with options of `everymask train` in quotes, such as
            "unet --backbone resnet34 --crop 320".
        data: Training images with their annotation.
        out: Folder for the runs and the table.
        val: Annotated images to score on; without it the data's own part for validation, or else a tenth of the images.
        minutes: Time that each method trains for, validation not counted. Each gets as many epochs as fit, by its pace
            in a short trial.
        epochs: Instead of minutes: epochs that each method trains for. Without either each has those of its recipe.
        format: Format of the data, where it is not recognised.
        resume: Go on with the runs in the output folder.
    """
    from everymask.cli.output import Output
    from everymask.cli.runs import Budget, Runs
    from everymask.errors import InputError
    from everymask.files import check_writable_folder
    from everymask.report.methods import comparison_table, write_comparison

    output = Output(common)
    if minutes is not None and epochs is not None:
        raise InputError("compare takes --minutes or --epochs, not both")
    if minutes is not None and not minutes > 0:
        raise InputError(f"--minutes must be above 0, got {minutes:g}")
    commands = named_commands(methods)
    runs = Runs(data, val, check_writable_folder(out), format, Budget(minutes, epochs), resume)
    runs.check(commands)
    entries: list[Entry] = []
    failed: list[str] = []
    for number, (name, tokens) in enumerate(commands.items(), 1):
        output.note(f"{number} of {len(commands)}: {name}")
        try:
            entries.append(runs.entry(name, tokens))
        except InputError as error:
            failed.append(f"{name}: {error}")
            output.note(f"{name} failed: {error}")
            continue
        write_comparison(out, entries, about={"data": str(data), "validation": str(val) if val else "held out"})
    if entries:
        page = out / "comparison.html"
        output.table(comparison_table(entries))
        output.hint(f"report   {page}")
        output.result({"methods": [each.to_json() for each in entries], "report": page})
    if failed:
        raise InputError(f"{len(failed)} of {len(commands)} methods could not be compared: {'; '.join(failed)}")


def named_commands(methods: list[str]) -> dict[str, list[str]]:
    """The tokens of each method with its options by a name that no other has and that a folder can bear.

    Raises:
        InputError: The same is given twice, or a quote is left open.
    """
    from everymask.errors import InputError

    found: dict[str, list[str]] = {}
    for each in methods:
        try:
            tokens = shlex.split(each)
        except ValueError as error:
            raise InputError(f"cannot read {each!r}: {error}") from error
        if not tokens:
            raise InputError("compare needs the name of a method; got an empty one")
        words = [token.removeprefix("--") for token in tokens]
        name = "_".join("".join(c if c.isalnum() or c in ".-" else "_" for c in word) for word in words)
        if name in found:
            raise InputError(f"{each!r} is given twice")
        found[name] = tokens
    return found
