"""Command line options made from typed, documented constructors: those of `Recipe` and of the methods."""

from __future__ import annotations

import contextlib
import inspect
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
from cyclopts import Group, Parameter

from everymask.errors import InputError
from everymask.methods.recipe import Recipe

if TYPE_CHECKING:
    from everymask.methods.base import Method

GIVEN_BY_DATA = ("self", "classes", "channels")
"""Constructor arguments of methods that are not options, because the data set or an option of the verb gives them."""


def recipe_options(default: Recipe, title: str) -> type:
    """A dataclass whose fields are those of `Recipe`, with the values of `default`, as a group of options."""
    hints = get_type_hints(Recipe)
    fields = [(name, hints[name], value) for name, value in asdict(default).items()]
    return _option_group("RecipeOptions", fields, Recipe, Group(title, sort_key=20))


def method_options(kind: type[Method], title: str) -> type:
    """A dataclass whose fields are the constructor arguments of a method, as a group of options."""
    hints = get_type_hints(kind.__init__)
    fields = [
        (name, hints[name], parameter.default)
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if name not in GIVEN_BY_DATA
    ]
    return _option_group("MethodOptions", fields, kind, Group(title, sort_key=10))


def _option_group(name: str, options: Sequence[tuple[str, Any, Any]], documented: type, group: Group) -> type:
    """A dataclass of options (name, type, default), helped by the docstring of the class that has them."""
    documentation = docstring_parser.parse(inspect.getdoc(documented) or "")
    # One paragraph each, since line breaks of the source have no meaning on another width.
    helps = {
        each.arg_name: " ".join((each.description or "").replace("``", "`").split()) for each in documentation.params
    }
    fields = [
        (option, Annotated[hint, _parameter(hint, helps.get(option, ""))], field(default=default))
        for option, hint, default in options
    ]
    # Without a module of its own the class would pass for one of the standard library, which cyclopts does not open.
    made = make_dataclass(name, fields, frozen=True, namespace={"__module__": __name__})
    return Parameter(name="*", group=group)(made)


def given_names(kind: type[Method], tokens: Sequence[str]) -> dict[str, Any]:
    """What a command line, or the file behind its ``--config``, gives for constructor arguments of a method.

    Those whose type is text, such as the name of a backbone, a number, or one of a few values: enough to pick the
    recipe before anything is parsed. What does not fit the type is left out, and told when it is parsed.
    """
    hints = get_type_hints(kind.__init__)
    path = argument_of("--config", tokens)
    file: dict[str, Any] = {} if path is None else read_options_file(path)
    found: dict[str, Any] = {}
    for name, hint in hints.items():
        option = name.replace("_", "-")
        value = argument_of(f"--{option}", tokens)
        value = file.get(option) if value is None else value
        if value is None or name in GIVEN_BY_DATA:
            continue
        if get_origin(hint) is Literal:
            for each in get_args(hint):
                if str(each) == str(value):
                    found[name] = each
        elif hint in (str, int, float):
            with contextlib.suppress(ValueError):
                found[name] = hint(value)
    return found


def _parameter(hint: Any, text: str) -> Parameter:
    """How an option is given: one that takes any number of values takes all that follow it, ``--weights 1 2 3``."""
    return Parameter(help=text, consume_multiple=get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis)


def argument_of(option: str, tokens: Sequence[str]) -> str | None:
    """What follows ``--option`` among the tokens (or ``--option=``), before they are parsed."""
    for position, token in enumerate(tokens):
        if token == option and position + 1 < len(tokens):
            return tokens[position + 1]
        if token.startswith(f"{option}="):
            return token.split("=", 1)[1]
    return None


def read_options_file(path: Path | str) -> dict[str, Any]:
    """Options of a TOML file by name: at the top, or in tables, whose names are for the reader only.

    Args:
        path: Such as a file with ``epochs = 50`` and a table ``[method]`` with ``rays = 64``. Names may be written with
            ``_`` or ``-``.

    Raises:
        InputError: The file is missing or not TOML, or an option is there twice.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; --config needs a TOML file with options") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error
    options: dict[str, Any] = {}
    for name, value in values.items():
        for inner, each in value.items() if isinstance(value, Mapping) else [(name, value)]:
            key = inner.replace("_", "-")
            if key in options:
                raise InputError(f"{path} gives the option {inner!r} twice; delete one of the lines")
            options[key] = each
    return options
