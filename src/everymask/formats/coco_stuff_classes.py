"""The classes of COCO-Stuff (Caesar et al., CVPR 2018), after the label list of its authors.

Things are those of COCO, 1 to 91, less the eleven ids that have no annotations anywhere. Stuff is 92 to 182.
Source: https://github.com/nightrome/cocostuff, labels.txt.
"""

from __future__ import annotations

from everymask.types import Categories, Category

OTHER = 183
"""In maps of stuff alone, what is no stuff."""

_THINGS = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, , stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, , backpack, umbrella, "
    ", , handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket, bottle, , wine glass, cup, fork, knife, spoon, bowl, banana, apple, "
    "sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, , "
    "dining table, , , toilet, , tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, "
    "refrigerator, , book, clock, vase, scissors, teddy bear, hair drier, toothbrush, "
)
_STUFF = (
    "banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, "
    "ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, "
    "floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, "
    "grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, "
    "net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, "
    "roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, "
    "structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, "
    "wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood"
)


def stuff_categories(*, things: bool = True) -> Categories:
    """The 80 things and 91 kinds of stuff; without things, stuff and `OTHER`."""
    names = enumerate((_THINGS + ", " + _STUFF).split(", "), 1)
    found = [Category(number, name, number <= 91) for number, name in names if name and (things or number > 91)]
    return Categories(found if things else [*found, Category(OTHER, "other", False)])


def thing_categories() -> Categories:
    """The 80 things of COCO with their ids, 1 to 90."""
    return Categories([each for each in stuff_categories() if each.is_thing])
