"""Weights that their authors publish: where they are, under which licence, and how they are fetched and checked."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from everymask.errors import InputError

_BLOCK = 1 << 20
"""Bytes that are fetched at a time."""
_PATIENCE = 30.0
"""Seconds without an answer after which a server counts as silent."""


@dataclass(frozen=True, slots=True)
class Published:
    """A file of weights on the internet.

    Args:
        url: Of the file.
        sha256: Checksum of its content, in hexadecimal digits.
        size: Its bytes.
        licence: Of the weights (SPDX). Weights without one are not fetched.
        title: One line for tables.
        method: Name of the method that they are for.
        options: Its constructor arguments.
        categories: What the network was trained on: ``coco``, its 80 things.
        source: Page that tells of the licence and the training.
    """

    url: str
    sha256: str
    size: int
    licence: str
    title: str
    method: str
    categories: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)


def cache_folder() -> Path:
    """Where fetched files are kept: ``EVERYMASK_CACHE``, or the usual place of the system for such files."""
    given = os.environ.get("EVERYMASK_CACHE")
    if given:
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "everymask"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "everymask" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "everymask"


def fetched(name: str, weights: Published, progress: Callable[[int, int], None] | None = None) -> Path:
    """The local file of published weights, downloaded if it is not there yet.

    A download that was interrupted goes on where it ended. The file appears under its name only when its checksum is
    right; a wrong one is deleted.

    Args:
        name: Of the model, for messages.
        weights: What to fetch.
        progress: Called with the bytes that are there and all bytes.

    Raises:
        InputError: The weights have no licence, cannot be fetched or written, or are not what they should be.
    """
    if not weights.licence:
        raise InputError(f"{name} has no entry for the licence of its weights, so they are not downloaded")
    suffix = Path(weights.url.partition("?")[0]).suffix
    target = cache_folder() / f"{name}-{weights.sha256[:12]}{suffix}"
    if target.is_file() and target.stat().st_size == weights.size:
        return target
    part = target.with_name(f"{target.name}.part")
    advice = f"download {weights.url} yourself and give the file by --weights"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _append(part, weights, progress)
        _check(part, name, weights)
        part.replace(target)
    except HTTPError as error:
        raise InputError(
            f"cannot download {name}: {weights.url} answers {error.code} {error.reason}; {advice}"
        ) from error
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"cannot download {name}: {reason}; check the connection and try again (it goes on where it ended), or "
            f"{advice}"
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot write {target}: {error.strerror or error}; set EVERYMASK_CACHE to a folder with room for "
            f"{weights.size / 1e6:.0f} MB"
        ) from error
    return target


def _append(part: Path, weights: Published, progress: Callable[[int, int], None] | None) -> None:
    """Fetches what the file lacks."""
    there = part.stat().st_size if part.exists() else 0
    if there >= weights.size:
        return
    if not weights.url.startswith(("https://", "http://")):
        raise InputError(f"weights are fetched by http or https, not from {weights.url}")
    request = Request(weights.url, headers={"Range": f"bytes={there}-"} if there else {})  # noqa: S310 - checked above
    with urlopen(request, timeout=_PATIENCE) as answer:  # noqa: S310
        # A server that does not know ranges sends the file from its beginning.
        continues = there > 0 and answer.status == 206
        done = there if continues else 0
        with part.open("ab" if continues else "wb") as file:
            while block := answer.read(_BLOCK):
                file.write(block)
                done += len(block)
                if progress is not None:
                    progress(min(done, weights.size), weights.size)
                if done > weights.size:
                    break
    if done < weights.size:
        raise ConnectionError(f"the connection ended after {done} of {weights.size} bytes")


def _check(part: Path, name: str, weights: Published) -> None:
    """Deletes a file that is not what it should be.

    Raises:
        InputError: It is not.
    """
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if part.stat().st_size != weights.size or digest.hexdigest() != weights.sha256:
        part.unlink()
        raise InputError(
            f"{weights.url} is not the file that {name} was (its checksum differs), and was deleted; try again, or "
            "give weights that you trust by --weights"
        )
