"""`everymask formats`: what can be read, written and converted."""

from __future__ import annotations

from everymask.cli.application import Common

EXAMPLES = """\
  everymask formats
  everymask formats --json"""


def command(*, common: Common = Common()) -> None:  # noqa: B008 - frozen, and cyclopts reads the default
    """List the formats of data sets, what they are made of and what they have no place for."""
    from everymask.cli.output import Output
    from everymask.formats import FORMATS, can_read, describe
    from everymask.formats.description import Feature

    output = Output(common)
    described = {name: describe(name) for name in FORMATS}
    entries = [
        {
            "name": name,
            "summary": each.summary,
            "layout": each.layout,
            "reads": can_read(name),
            "tasks": sorted(each.tasks),
            "lacks": [str(feature) for feature in Feature if feature not in each.carries],
            "attributes": None if each.attributes is None else sorted(each.attributes),
        }
        for name, each in described.items()
    ]
    rows = [(str(each["name"]), "yes" if each["reads"] else "export only", str(each["summary"])) for each in entries]
    output.rows(("format", "reads", "what it is"), rows)
    output.hint("--json has layouts, and what each format has no place for.")
    output.result(entries)
