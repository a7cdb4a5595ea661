"""The labels of Cityscapes: ids, training ids, groups and colours.

Facts from the data set's own program (github.com/mcordts/cityscapesScripts, `helpers/labels.py`): the labels that are
evaluated are those with a training id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from everymask.types import Categories, Category

UNLABELED = 0
"""Id of pixels that nobody has labelled: void."""
INSTANCES = 1000
"""An instance has the value label * 1000 + number in instanceIds.png; what is below is no instance."""
NO_TRAINING_ID = 255
"""Value in labelTrainIds.png of labels that are not evaluated."""

LabelSet = Literal["ids", "train"]


@dataclass(frozen=True, slots=True)
class Label:
    """One label.

    Args:
        name: As in the polygons.
        id: As in labelIds.png; -1 for one that is not drawn.
        train_id: As in labelTrainIds.png, 0..18, or 255 for none.
        group: Called "category" by Cityscapes.
        has_instances: Whether single objects are told apart.
        ignored: Whether pixels with this true label are ignored in the evaluation.
        colour: Red, green, blue.
    """

    name: str
    id: int
    train_id: int
    group: str
    has_instances: bool
    ignored: bool
    colour: tuple[int, int, int]


# name, id, training id, group, has instances, red, green, blue
_TABLE = (
    ("unlabeled", 0, 255, "void", False, 0, 0, 0),
    ("ego vehicle", 1, 255, "void", False, 0, 0, 0),
    ("rectification border", 2, 255, "void", False, 0, 0, 0),
    ("out of roi", 3, 255, "void", False, 0, 0, 0),
    ("static", 4, 255, "void", False, 0, 0, 0),
    ("dynamic", 5, 255, "void", False, 111, 74, 0),
    ("ground", 6, 255, "void", False, 81, 0, 81),
    ("road", 7, 0, "flat", False, 128, 64, 128),
    ("sidewalk", 8, 1, "flat", False, 244, 35, 232),
    ("parking", 9, 255, "flat", False, 250, 170, 160),
    ("rail track", 10, 255, "flat", False, 230, 150, 140),
    ("building", 11, 2, "construction", False, 70, 70, 70),
    ("wall", 12, 3, "construction", False, 102, 102, 156),
    ("fence", 13, 4, "construction", False, 190, 153, 153),
    ("guard rail", 14, 255, "construction", False, 180, 165, 180),
    ("bridge", 15, 255, "construction", False, 150, 100, 100),
    ("tunnel", 16, 255, "construction", False, 150, 120, 90),
    ("pole", 17, 5, "object", False, 153, 153, 153),
    ("polegroup", 18, 255, "object", False, 153, 153, 153),
    ("traffic light", 19, 6, "object", False, 250, 170, 30),
    ("traffic sign", 20, 7, "object", False, 220, 220, 0),
    ("vegetation", 21, 8, "nature", False, 107, 142, 35),
    ("terrain", 22, 9, "nature", False, 152, 251, 152),
    ("sky", 23, 10, "sky", False, 70, 130, 180),
    ("person", 24, 11, "human", True, 220, 20, 60),
    ("rider", 25, 12, "human", True, 255, 0, 0),
    ("car", 26, 13, "vehicle", True, 0, 0, 142),
    ("truck", 27, 14, "vehicle", True, 0, 0, 70),
    ("bus", 28, 15, "vehicle", True, 0, 60, 100),
    ("caravan", 29, 255, "vehicle", True, 0, 0, 90),
    ("trailer", 30, 255, "vehicle", True, 0, 0, 110),
    ("train", 31, 16, "vehicle", True, 0, 80, 100),
    ("motorcycle", 32, 17, "vehicle", True, 0, 0, 230),
    ("bicycle", 33, 18, "vehicle", True, 119, 11, 32),
    ("license plate", -1, 255, "vehicle", False, 0, 0, 142),
)

LABELS = tuple(
    Label(name, number, train, group, instances, train == NO_TRAINING_ID, (red, green, blue))
    for name, number, train, group, instances, red, green, blue in _TABLE
)
"""The 35 labels."""
BY_ID = {each.id: each for each in LABELS}
BY_NAME = {each.name: each for each in LABELS}


def categories(labels: LabelSet, *, drawn: bool = True) -> Categories:
    """The labels as categories, their groups as supercategories.

    Args:
        labels: ``"ids"`` for all, ``"train"`` for the 19 that are evaluated, under their training ids.
        drawn: Without those that no pixel of labelIds.png stands for: "license plate", and "unlabeled", which is void.
    """
    if labels == "train":
        chosen = [(each.train_id, each) for each in LABELS if not each.ignored]
    else:
        chosen = [(each.id, each) for each in LABELS if not drawn or each.id > UNLABELED]
    return Categories(
        Category(number, each.name, each.has_instances, each.colour, each.group) for number, each in chosen
    )
