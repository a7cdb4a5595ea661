"""The command line: `everymask VERB ...`.

This file imports next to nothing, so that help and mistakes answer at once; each verb lives in a module of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "Try it: segment the bundled sample images and leave pictures and scores.",
    "predict": "Segment images and videos: label masks, overlays and a table of measures.",
    "train": "Train a method on annotated images.",
    "evaluate": "Score a model, or a folder of predictions, against annotated images.",
    "compare": "Train several methods on the same images and score them side by side.",
    "convert": "Rewrite an annotated data set in another format.",
    "inspect": "What is in a data set, and what is wrong with it.",
    "methods": "List what can be trained.",
    "formats": "List the formats of data sets.",
    "models": "List the weights that come with the package.",
    "export": "Write a model in a format for other programs, such as ONNX.",
}
"""Verb -> one line of help. The verb ``x`` is the function ``command`` or ``make_command`` of ``everymask.cli.x``."""

OK, OURS, USERS, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: fine, our mistake, the user's mistake, Ctrl-C."""

_OF_THE_DISK = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ENAMETOOLONG")
"""Names of the system's errors that are no mistake of a program."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0, 1 (our mistake), 2 (the user's) or 130 (Ctrl-C).

    Args:
        arguments: What follows the program's name; default: those of this process.
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    from everymask.errors import InputError, interruptible, unknown_name

    try:
        if not tokens or tokens[0] in ("--help", "-h", "help"):
            sys.stdout.write(_help())
        elif tokens[0] in ("--version", "-V"):
            import everymask

            sys.stdout.write(f"everymask {everymask.__version__}\n")
        elif tokens[0].startswith("-"):
            raise unknown_name("option", tokens[0], ["--help", "--version"])
        elif tokens[0] not in COMMANDS:
            raise unknown_name("command", tokens[0], COMMANDS)
        else:
            from everymask.cli.application import run

            with interruptible():
                run(tokens[0], tokens[1:])
        sys.stdout.flush()
    except InputError as error:
        _complain(f"error: {error}")
        return USERS
    except KeyboardInterrupt as interruption:
        _complain(str(interruption) or "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; the interpreter must not try to flush again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:  # noqa: BLE001 - the last line of defence between a bug and the user
        return _unexpected(error, debug="--debug" in tokens or os.environ.get("EVERYMASK_DEBUG", "0") not in ("", "0"))
    return OK


def _unexpected(error: Exception, debug: bool) -> int:
    """Tells of an error that nobody foresaw; returns the exit code."""
    import errno

    from everymask.errors import is_out_of_memory

    if is_out_of_memory(error):
        _complain("error: out of memory; lower --tile for prediction, --batch-size or --crop for training")
        return USERS
    # No check beforehand can know that a disk will be full or a share unmounted in the middle of the work.
    if isinstance(error, OSError) and error.errno in {getattr(errno, name, None) for name in _OF_THE_DISK}:
        place = f" {error.filename}" if error.filename else ""
        advice = "free some space, check permissions or choose another place"
        _complain(f"error: cannot read or write{place}: {error.strerror}; {advice}")
        return USERS
    if debug:
        import traceback

        traceback.print_exception(error)
    _complain(f"error: everymask failed: {type(error).__name__}: {error}")
    hint = "" if debug else "; run it again with --debug and send us what it prints"
    _complain(f"This is a mistake of ours. Please report it at https://github.com/everymask/everymask/issues{hint}.")
    return OURS


def _complain(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(" ".join(message.split()) + "\n")


def _help() -> str:
    """The page of `everymask --help`, made by hand: a help library takes longer to import than it saves here."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    width = max(len(name) for name in COMMANDS)
    verbs = "\n".join(f"  {bold}{name:<{width}}{plain}  {text}" for name, text in COMMANDS.items())
    return f"""Usage: everymask COMMAND ...

Train, predict, evaluate and export every kind of image segmentation.

Commands:
{verbs}

Options:
  {bold}--help{plain}, {bold}-h{plain}  this page; `everymask COMMAND --help` has the options of a command and examples
  {bold}--version{plain}   the version

Start with:
  everymask demo
  everymask predict my_images/ --model nuclei --out results/
"""
