"""The command line as a whole: help, exit codes, one-line errors, quick answers."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import everymask
from everymask.cli import COMMANDS, main
from everymask.errors import InputError
from everymask.methods import METHODS, method_class
from everymask.methods.recipe import Recipe


def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    code = "import sys; from everymask.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a user's mistake is told in."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and captured.err.endswith("\n")
    return captured.err


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_verb(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    page = capsys.readouterr().out
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", page, re.MULTILINE)
    assert max(map(len, page.splitlines())) <= 100


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"everymask {everymask.__version__}\n"


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_help_of_a_verb_has_examples_and_describes_every_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main([verb, "--help"]) == 0
    page = capsys.readouterr().out
    assert f"everymask {verb}" in page.split("Examples:")[1]
    for option in ("--quiet", "--json", "--debug"):
        assert option in page
    # Every row of an option has a description beside it.
    for row in re.findall(r"^│[ *]+(--[a-z-]+.*?)│$", page, re.MULTILINE):
        assert re.match(r"--\S.*?  +\S", row), row


def test_examples_use_options_that_exist() -> None:
    of_training = {each.name for each in fields(Recipe)}
    of_training |= {option for name in METHODS for option in inspect.signature(method_class(name).__init__).parameters}
    for verb in COMMANDS:
        module = importlib.import_module(f"everymask.cli.{verb}")
        command = module.make_command([]) if verb == "train" else module.command
        known = {name.replace("_", "-") for name in command.__annotations__} | {"from", "quiet", "json", "help"}
        for line in module.EXAMPLES.splitlines():
            if line.startswith(f"  everymask {verb}"):
                options = set(re.findall(r"--(?:no-)?([a-z-]+)", line))
                if verb in ("train", "compare"):
                    known |= {name.replace("_", "-") for name in of_training}
                assert options <= known, line


def test_help_and_mistakes_do_not_import_the_heavy_packages() -> None:
    code = (
        "import sys; from everymask.cli import main\n"
        "for arguments in ([], ['--version'], ['predict', '--help'], ['train', '--help'], ['evaluate', '--modl', 'x'],"
        "                  ['predict', '/no/such/file', '--model', 'nuclei', '--out', '/tmp/x'], ['nonsense']):\n"
        "    main(arguments)\n"
        "heavy = {'torch', 'torchvision', 'numba', 'scipy', 'matplotlib', 'timm', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -- mistakes of the user ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["predct", "x"], ["unknown command 'predct'", "did you mean 'predict'"]),
        (["--modle"], ["unknown option '--modle'"]),
        (["predict", "x", "--modle", "nuclei", "--out", "y"], ["unknown option: --modle", "did you mean --model"]),
        (["predict", "--model", "nuclei", "--out", "y"], ["IMAGES is missing", "everymask predict --help"]),
        (["predict", "x", "--model", "nuclei"], ["--out is missing"]),
        (["predict", "x", "--out", "y", "--model"], ["--model needs a value"]),
        (["predict", "x", "--model", "nuclei", "--out", "y", "--tile", "big"], ["--tile", '"big"', "int"]),
        (
            ["predict", "x", "--model", "nuclei", "--out", "y", "--format", "cocoo"],
            ['"cocoo"', '"coco"', "did you mean"],
        ),
        (["predict", "/no/such/image.png", "--model", "nuclei", "--out", "y"], ["/no/such/image.png"]),
        (["methods", "stardist"], ["unexpected argument 'stardist'"]),
        (["train", "stardst", "--data", "x", "--out", "y"], ["unknown method 'stardst'", "'stardist'"]),
        (["train", "--data", "x", "--out", "y"], ["METHOD is missing"]),
        (["train", "stardist", "--data", "/no/such/data", "--out", "y"], ["/no/such/data does not exist"]),
        (["train", "stardist", "--data", "x", "--out", "y", "--rys", "3"], ["--rys", "did you mean --rays"]),
        (["train", "stardist", "--data", "x", "--out", "y", "--scale", "1"], ["--scale needs 2 values"]),
        (["train", "stardist", "--data", "x", "--out", "y", "--epochs", "0"], ["epochs must be at least 1, got 0"]),
        (["train", "unet", "--data", "x", "--out", "y", "--config", "/no/file.toml"], ["/no/file.toml"]),
        (["evaluate", "--data", "x"], ["--model", "--predictions"]),
        (["evaluate", "--data", "x", "--model", "nuclei", "--protocol", "matchin"], ["'matchin'", "'matching'"]),
        (["evaluate", "--data", "/no/such/data", "--model", "nuclei"], ["/no/such/data does not exist"]),
        (["convert", "/no/such/data", "y", "--to", "cocoo"], ["unknown format 'cocoo'", "'coco'"]),
        (["inspect", "/no/such/data"], ["/no/such/data does not exist"]),
        (
            ["export", "/no/model.safetensors", "--to", "onnx", "--out", "y"],
            ["/no/model.safetensors: no such model file"],
        ),
        (["export", "nucleii", "--to", "onnx", "--out", "y"], ["unknown model 'nucleii'", "'nuclei'"]),
    ],
)
def test_mistakes_are_told_in_a_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, *arguments)
    for part in parts:
        assert part in line
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_leaves_no_traceback_in_a_process_of_its_own() -> None:
    done = program("predict", "/no/such/image.png", "--model", "nuclei", "--out", "/tmp/never")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


# -- mistakes of ours, and interruptions -------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the verb `models` raise an error."""

    def with_error(error: BaseException) -> None:
        def command(*, debug: bool = False) -> None:
            raise error

        monkeypatch.setattr(importlib.import_module("everymask.cli.models"), "command", command)

    return with_error


def test_our_mistakes_exit_1_and_say_how_to_report(
    capsys: pytest.CaptureFixture[str], failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVERYMASK_DEBUG", raising=False)
    failing(ZeroDivisionError("division by zero"))
    assert main(["models"]) == 1
    short = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in short and "report" in short and "--debug" in short
    assert "Traceback" not in short
    assert main(["models", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("EVERYMASK_DEBUG", "1")
    assert main(["models"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_running_out_of_memory_names_the_option_to_lower(capsys: pytest.CaptureFixture[str], failing: Any) -> None:
    failing(MemoryError())
    line = fails(capsys, "models")
    assert "--tile" in line and "--batch-size" in line


def test_messages_of_several_lines_become_one(capsys: pytest.CaptureFixture[str], failing: Any) -> None:
    failing(InputError("first\n  second"))
    assert fails(capsys, "models") == "error: first second\n"


def test_interruption_exits_130(capsys: pytest.CaptureFixture[str], failing: Any) -> None:
    failing(KeyboardInterrupt())
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    # What a function compiled by numba makes of it, sometimes.
    error, outer = SystemError("a function returned a result with an exception set"), SystemError("another one, too")
    error.__cause__, outer.__cause__ = KeyboardInterrupt(), error
    failing(outer)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    failing(SystemError("a mistake"))
    assert main(["models"]) == 1


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_ctrl_c_in_a_process_of_its_own() -> None:
    code = (
        "import sys, time, everymask.cli.models as verb\n"
        "def command():\n    print('ready', flush=True); time.sleep(60)\n"
        "verb.command = command\n"
        "from everymask.cli import main; sys.exit(main(['models']))"
    )
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stdout.readline() == "ready\n"
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=30)
    assert running.returncode == 130 and errors == "interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="uses a POSIX shell")
def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "import sys; from everymask.cli import main; sys.exit(main(['--help']))"
    script = f'{sys.executable} -c "{code}" | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout == "0\n" and done.stderr == ""


# -- tables and methods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, whole", [(300, True), (70, False), (30, False)])
def test_tables_fit_the_terminal_and_say_what_they_leave_out(width: int, whole: bool) -> None:
    import io

    from rich.console import Console

    from everymask.cli.output import rich_table
    from everymask.metrics import Table

    names = ("threshold", *(f"figure number{i}" for i in range(12)))
    content = Table("Many", names, ((0.55, *range(12)), (0.6, *([0.12345] * 12))), "A note.")
    stream = io.StringIO()
    Console(file=stream, width=width).print(rich_table(content, width))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "…" not in stream.getvalue()
    assert "0.55" in stream.getvalue() and "0.550" not in stream.getvalue() and "0.123" in stream.getvalue()
    assert ("Left out" not in stream.getvalue()) == whole


def test_methods_as_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    from everymask.methods import METHODS

    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert main(["methods", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in listed] == list(METHODS)
    for each in listed:
        assert each["name"] in table and each["summary"] in table
        assert each["recipe"]["epochs"] >= 1 and "classes" not in each["options"]
