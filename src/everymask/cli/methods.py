"""`everymask methods`: what can be trained."""

from __future__ import annotations

from typing import Any

from everymask.cli.application import Common

EXAMPLES = """\
  everymask methods
  everymask methods --json
  everymask train stardist --help"""


def command(*, common: Common = Common()) -> None:  # noqa: B008 - frozen, and cyclopts reads the default
    """List the methods that can be trained."""
    import inspect

    from everymask.cli.output import Output
    from everymask.methods import METHODS, method_class

    output = Output(common)
    found: list[dict[str, Any]] = []
    for name in METHODS:
        kind = method_class(name)
        options = [each for each in inspect.signature(kind.__init__).parameters if each not in ("self", "classes")]
        found.append(
            {
                "name": name,
                "tasks": sorted(kind.tasks),
                "summary": (inspect.getdoc(kind) or "").split("\n", 1)[0],
                "metric": list(kind.metric),
                "options": options,
                "recipe": kind.recipe().to_json(),
            }
        )
    rows = [(each["name"], ", ".join(each["tasks"]), each["summary"]) for each in found]
    output.rows(("method", "tasks", "what it is"), rows)
    output.hint("`everymask train METHOD --help` shows the options of a method and its recipe.")
    output.result(found)
