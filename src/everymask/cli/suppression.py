"""The options of `everymask predict` and `everymask evaluate` for boxes that overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everymask.errors import InputError

if TYPE_CHECKING:
    from everymask.layers.suppression import Suppression
    from everymask.model import Model


def set_suppression(model: Model, name: str, suppression: Suppression | None, class_agnostic: bool | None) -> None:
    """Changes how boxes of a model suppress one another, where the user says so.

    Args:
        model: Changed in place.
        name: As the user called it.
        suppression: See `everymask.layers.suppression.suppress`; None for that of the training.
        class_agnostic: Whether boxes of different classes do so, too; None for what the training had.

    Raises:
        InputError: The model does not find boxes, or none twice.
    """
    from everymask.methods.detection.common import BoxMethod

    if suppression is None and class_agnostic is None:
        return
    if not isinstance(model.method, BoxMethod):
        raise InputError(f"{name} does not find boxes; leave out --suppression and --class-agnostic")
    model.method.suppress_by(suppression, class_agnostic)
