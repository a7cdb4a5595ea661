"""The bytes of a text file, in memory if it is small and mapped into memory if it is large."""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everymask.errors import InputError

_MAPPED = 32 << 20  # bytes from which on a file is mapped and not read
_AROUND = 64 << 10  # bytes that the system maps at least around a place that is looked at
_KEPT_PAGES = 64 << 20  # bytes that may have been looked at before pages of a mapping are given back


class MappedFile:
    """A file whose bytes are looked at here and there, as long as this object lives.

    Args:
        path: The file.

    Raises:
        InputError: It cannot be read.
    """

    data: NDArray[np.uint8]
    """(L,) its bytes without a byte order mark and without white space at the end; call `check` before looking."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapping: mmap.mmap | None = None
        self._file = -1
        self._seen = 0
        try:
            if path.stat().st_size < _MAPPED:
                self.data = _stripped(path.read_bytes())
                return
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            weakref.finalize(self, os.close, self._file)
            self._state = self._now()
            self._mapping = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
            self.data = _stripped(self._mapping)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file)
        return status.st_size, status.st_mtime_ns

    def replace(self, content: bytes) -> None:
        """Takes other bytes for those of the file: the same text, written in another way."""
        self.data, self._mapping = _stripped(content), None

    def check(self, reading: int = 0, places: int = 1) -> None:
        """To be called before bytes are looked at.

        A file that is shortened while it is mapped would end the program, so that is found out before. And pages that
        were looked at are given back from time to time, so that memory does not grow with what was read.

        Args:
            reading: How many bytes will be looked at.
            places: In how many places of the file they are.

        Raises:
            InputError: The file was changed since it was opened.
        """
        if self._mapping is None:
            return
        if self._now() != self._state:
            raise InputError(f"{self.path} was changed while it was in use; open it again")
        self._seen += reading + places * _AROUND
        if self._seen > _KEPT_PAGES:
            self.forget()

    def forget(self) -> None:
        """Gives the pages that were looked at back to the system, which reads them again when they are needed."""
        self._seen = 0
        if self._mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)


def _stripped(content: bytes | mmap.mmap) -> NDArray[np.uint8]:
    start = 3 if content[:3] == b"\xef\xbb\xbf" else 0
    end = len(content)
    while end > start and content[end - 1 : end] in (b" ", b"\t", b"\r", b"\n"):
        end -= 1
    return np.frombuffer(content, np.uint8, end - start, start) if end > start else np.zeros(0, np.uint8)
