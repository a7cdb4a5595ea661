"""Options that are not known beforehand, such as those of a format: ``--reading.kind semantic``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def option_values(given: Mapping[str, str] | None) -> dict[str, Any]:
    """Names and values as a function takes them.

    Args:
        given: From the command line. Text that looks like a number, a truth value (yes, no, true, false), ``none`` or
            a list with commas becomes one; dashes in names become underscores.
    """
    return {name.replace("-", "_"): _value(text) for name, text in (given or {}).items()}


def _value(text: str) -> Any:
    if "," in text:
        return tuple(_value(each) for each in text.split(",") if each)
    words = {"true": True, "yes": True, "false": False, "no": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
