"""From tokens to a call of a verb: parsing, help and the wording of mistakes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import cyclopts
from cyclopts import Group, Parameter

from everymask.errors import InputError

COMMON = Group("Common options", sort_key=1000)


@Parameter(name="*", group=COMMON)
@dataclass(frozen=True)
class Common:
    """Options of every verb.

    Args:
        quiet: Print only results and errors.
        json: Print the result as JSON on standard output.
        debug: Print a traceback if the program itself fails.
    """

    quiet: Annotated[bool, Parameter(name=("--quiet", "-q"), negative="", show_default=False)] = False
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False
    debug: Annotated[bool, Parameter(negative="", show_default=False)] = False


def run(verb: str, tokens: Sequence[str]) -> None:
    """Parses the tokens behind a verb and runs it.

    Raises:
        InputError: The options are wrong, or whatever the verb itself finds wrong.
    """
    module = importlib.import_module(f"everymask.cli.{verb}")
    application = cyclopts.App(
        name="everymask",
        help_format="plaintext",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(negative_iterable=()),
        config=module.configuration(tokens) if hasattr(module, "configuration") else None,
    )
    # A verb whose options depend on its arguments makes its function when it has seen them.
    command = module.make_command(tokens) if hasattr(module, "make_command") else module.command
    application.command(command, name=verb, help_epilogue=f"Examples:\n{module.EXAMPLES}")
    try:
        application([verb, *tokens], exit_on_error=False, print_error=False, verbose=False, help_on_error=False)
    except cyclopts.CycloptsError as error:
        raise InputError(f"{verb}: {_wording(error)}; see `everymask {verb} --help`") from error


def _wording(error: Any) -> str:
    """What is wrong with the command line, in a line."""
    if isinstance(error, cyclopts.MissingArgumentError) and error.argument is not None:
        if error.keyword is None and not error.argument.tokens:
            return f"{error.argument.name} is missing"
        count = error.argument.token_count()[0]
        return f"{error.keyword or error.argument.name} needs {'a value' if count == 1 else f'{count} values'}"
    if isinstance(error, cyclopts.UnusedCliTokensError) and error.unused_tokens:
        return f"unexpected argument {error.unused_tokens[0]!r}"
    text = " ".join(str(error).split()).rstrip(".").replace(". Did you mean", "; did you mean")
    return text[:1].lower() + text[1:]
