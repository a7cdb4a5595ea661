"""The one error a user is meant to see: a mistake in the input, told in a line that says how to mend it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class InputError(ValueError):
    """A user's mistake. The message is one line: what was got, what was expected, how to fix it.

    The command line prints the message without a traceback and ends with exit code 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a name that does not exist, with the nearest known names as suggestions.

    Args:
        kind: What the name stands for, such as ``"method"``.
        name: The name that was given.
        known: All valid names.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listed = ", ".join(names) or "none"
    hint = f"did you mean {' or '.join(repr(each) for each in close)}?" if close else f"known: {listed}"
    return InputError(f"unknown {kind} {name!r}; {hint}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: that of Python, of torch's CPU allocator or of an accelerator.

    Told by names and words, since importing torch to compare types would take seconds.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("DefaultCPUAllocator", "can't allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C a `KeyboardInterrupt` wherever it arrives.

    A compiled function that runs Python code of numba's own while the signal arrives raises `SystemError` instead, with
    the interruption as its cause.
    """
    try:
        yield
    except SystemError as error:
        cause: BaseException | None = error
        while isinstance(cause, SystemError):
            cause = cause.__cause__
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
