"""The network in training, translated by `torch.compile` where that works."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from everymask.methods.base import Method


class Compiled:
    """The forward pass of a method, compiled for training; evaluation, which sees images of all sizes, is not touched.

    Where it cannot be compiled, as without a C++ compiler on a CPU, the method is trained as it is.

    Args:
        method: Changed in place, until `undo`.
        tell: Told why the network is not compiled, in a line.
        compiler: Such as `torch.compile`.
    """

    def __init__(
        self, method: Method, tell: Callable[[str], None], compiler: Callable[..., Callable[..., Any]] = torch.compile
    ) -> None:
        self.method, self.tell, self.fine = method, tell, True
        self._compiled = compiler(type(method).forward, dynamic=False)
        # A bound method, so that copies of the method call their own network. They are not trained.
        method.forward = MethodType(self._forward_of(method), method)  # type: ignore[method-assign]

    def _forward_of(self, original: Method) -> Callable[[Method, Tensor], dict[str, Tensor]]:
        def forward(method: Method, images: Tensor) -> dict[str, Tensor]:
            plain = type(method).forward
            if not (self.fine and method is original and method.training and torch.is_grad_enabled()):
                return plain(method, images)
            try:
                found: dict[str, Tensor] = self._compiled(method, images)
                return found
            except Exception as error:  # noqa: BLE001 - compilers fail in all kinds of ways; the network itself does not
                self.fine = False
                reason = " ".join(str(error).split())[:200]
                self.tell(f"note: the network is trained uncompiled ({type(error).__name__}: {reason})")
                return plain(method, images)

        return forward

    def undo(self) -> None:
        """Leaves the method as it was."""
        del self.method.forward
