"""Every method of the field, one file each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from everymask.errors import InputError, unknown_name

if TYPE_CHECKING:
    from everymask.methods.base import Method

METHODS = {
    "stardist": "everymask.methods.bottom_up.stardist:StarDist",
    "cellpose": "everymask.methods.bottom_up.cellpose:Cellpose",
    "omnipose": "everymask.methods.bottom_up.omnipose:Omnipose",
    "distance_watershed": "everymask.methods.bottom_up.distance_watershed:DistanceWatershed",
    "border_unet": "everymask.methods.bottom_up.border_unet:BorderUNet",
    "spatial_embedding": "everymask.methods.bottom_up.spatial_embedding:SpatialEmbedding",
    "denoiseg": "everymask.methods.bottom_up.denoiseg:DenoiSeg",
    "unet": "everymask.methods.semantic.unet:UNetSegmentation",
    "res_unet": "everymask.methods.semantic.res_unet:ResUNet",
    "fcn": "everymask.methods.semantic.fcn:FCN",
    "deeplabv3": "everymask.methods.semantic.deeplabv3:DeepLabV3",
    "deeplabv3plus": "everymask.methods.semantic.deeplabv3plus:DeepLabV3Plus",
    "pspnet": "everymask.methods.semantic.pspnet:PSPNet",
    "yolo": "everymask.methods.detection.yolo:YOLO",
    "ssd": "everymask.methods.detection.ssd:SSD",
    "retinanet": "everymask.methods.detection.retinanet:RetinaNet",
    "detr": "everymask.methods.detection.detr:DETR",
    "detr_panoptic": "everymask.methods.detection.detr_panoptic:DETRPanoptic",
    "rcnn": "everymask.methods.detection.rcnn:RCNN",
    "fast_rcnn": "everymask.methods.detection.fast_rcnn:FastRCNN",
    "faster_rcnn": "everymask.methods.detection.faster_rcnn:FasterRCNN",
    "mask_rcnn": "everymask.methods.detection.mask_rcnn:MaskRCNN",
    "panoptic_fpn": "everymask.methods.detection.panoptic_fpn:PanopticFPN",
    "classifier": "everymask.methods.classify.classifier:Classifier",
}
"""Name -> "module:Class". A user's own method is given in the same form, such as ``my_package.my_method:MyMethod``."""


def method_class(name: str) -> type[Method]:
    """The class of a method by its name in `METHODS` or as ``module:Class``.

    Raises:
        InputError: The name is unknown, or the module or class does not exist, or it is no `Method`.
    """
    from everymask.methods.base import Method

    address = METHODS.get(name, name)
    module_name, _, class_name = address.partition(":")
    if not class_name:
        raise unknown_name("method", name, METHODS)
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"cannot import method {name!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise InputError(f"{name} is not a subclass of everymask.methods.base.Method")
    return found


def method_name(method: Method) -> str:
    """The inverse of `method_class`: the short name if there is one, else ``module:Class``."""
    address = f"{type(method).__module__}:{type(method).__qualname__}"
    return next((name for name, each in METHODS.items() if each == address), address)
