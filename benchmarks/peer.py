"""A reference program in an environment of its own, for benchmarks that compare with it."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any


class Peer:
    """The official program in another process, which answers requests line by line as JSON.

    Args:
        python: Interpreter of its environment.
        script: File name of the program that answers, in the folder of the benchmarks.
    """

    def __init__(self, python: Path, script: str) -> None:
        server = Path(__file__).with_name(script)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [str(python), str(server)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to a request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"do": do, **request}, default=str), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            raise SystemExit(f"the official program failed on {do!r}:\n{self._log.read()[-2000:]}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()
