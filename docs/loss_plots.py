"""Draws the curves of docs/losses.md with the losses themselves: ``python docs/loss_plots.py`` writes the SVGs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from everymask.losses import box
from everymask.losses.boundary import signed_distances
from everymask.losses.embedding import discriminative
from everymask.losses.expression import PixelLoss
from everymask.ops.distance import unet_weight_map

FOLDER = Path(__file__).parent / "losses"
SIDE = 40
"""Of the images that regions are drawn in, in pixels."""

Curve = tuple[str, Sequence[float] | Tensor, Sequence[float] | Tensor]


def draw(name: str, curves: Sequence[Curve], x_label: str, y_label: str = "loss", top: float | None = None) -> None:
    """Writes an SVG of lines (label, x, y); text stays text, so that the file is small."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    styles = ("-", "--", "-.", ":")
    for number, (label, x, y) in enumerate(curves):
        axes.plot([float(each) for each in x], [float(each) for each in y], styles[number // 5], label=label)
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(None, top))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def loss(expression: str, logits: Tensor, target: Tensor) -> float:
    """The value of an expression."""
    return float(sum(PixelLoss(expression)(logits, target).values()))


def logit(probability: Tensor | float) -> Tensor:
    """Logits of probabilities, finite at 0 and 1."""
    return torch.logit(torch.as_tensor(probability, dtype=torch.float64), eps=1e-12)


def square(low: int, high: int, shift: int = 0) -> Tensor:
    """(SIDE, SIDE) 1 in a square of corners low .. high, moved to the right, and 0 outside."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.int64)
    mask[low:high, low + shift : high + shift] = 1
    return mask


def positions() -> None:
    """Over the probability of the true class of a single position."""
    x = torch.linspace(0.002, 0.999, 150)
    names = (
        "cross_entropy", "cross_entropy(smoothing=0.1)", "focal", "focal(gamma=5)", "ohem(least=0)", "lp(p=1)", "lp",
        "distance_cross_entropy(strength=1)", "exponential_logarithmic(dice_weight=0)",
    )  # fmt: skip
    one = torch.ones(1, 1, 1, dtype=torch.int64)
    # Two positions of two classes with the same probability of the truth, so that there is an edge between them.
    pair = torch.tensor([[[0, 1]]])
    curves = []
    for name in names:
        edge = name.startswith("distance")
        values = [
            loss(
                name,
                logit(torch.tensor([[[[1 - p, p]]]])) if edge else logit(p).view(1, 1, 1, 1),
                pair if edge else one,
            )
            for p in x
        ]
        curves.append((name, x, values))
    draw("positions", curves, "probability of the true class", top=4)


def regions() -> None:
    """Over the probability of the true class everywhere, and over the overlap of a sure answer."""
    x = torch.linspace(0.01, 0.999, 60)
    target = square(14, 27)[None]
    truth = target.double().unsqueeze(1)
    names = ("dice", "squared_dice", "log_cosh_dice", "jaccard", "tversky(alpha=0.3, beta=0.7)", "focal_tversky")
    names += ("generalised_dice", "lovasz", "sensitivity_specificity")
    curves = []
    for name in names:
        values = []
        for p in x:
            logits = logit(truth * p + (1 - truth) * (1 - p))
            # Two classes with softmax, where the first differs from Dice; Lovasz is the softmax form here.
            if name in ("generalised_dice", "lovasz"):
                logits = torch.cat([torch.zeros_like(logits), logits], 1)
            values.append(loss(name, logits, target))
        curves.append((name, x, values))
    draw("regions", curves, "probability of the true class at every position")

    names = (
        "dice",
        "log_cosh_dice",
        "jaccard",
        "lovasz",
        "tversky(alpha=0.3, beta=0.7)",
        "tversky(alpha=0.7, beta=0.3)",
    )
    names += ("focal_tversky",)
    curves = []
    for name in names:
        overlap, values = [], []
        for high in range(15, 27):  # a square that is too small, inside the true one
            answer = square(14, high).double()[None, None]
            logits = logit(answer)
            if name == "lovasz":
                logits = torch.cat([-logits / 2, logits / 2], 1)
            overlap.append(float(answer.sum() / target.sum()))
            values.append(loss(name, logits, target))
        curves.append((name, [*overlap, 1.0], [*values, loss(name, *_sure(name, target))]))
    draw("overlap", curves, "IoU of a sure answer that misses a part of the object")


def _sure(name: str, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the truth itself."""
    logits = logit(target.double().unsqueeze(1))
    return (torch.cat([-logits / 2, logits / 2], 1) if name == "lovasz" else logits), target


def confusion() -> None:
    """Wasserstein Dice: over the probability that goes to another class."""
    target = square(14, 27)[None]
    matrix = "((0, 1, 1), (1, 0, 0.3), (1, 0.3, 0))"
    x = torch.linspace(0, 1, 40)
    curves = []
    for label, name, other in (
        ("wasserstein_dice, to a class at 0.3", f"wasserstein_dice(distances={matrix})", 2),
        ("wasserstein_dice, to a class at 1", f"wasserstein_dice(distances={matrix})", 0),
        ("dice, to either", "dice", 2),
    ):
        values = []
        for share in x:
            probability = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.float64)
            probability[0, 0] = target[0] == 0
            probability[0, 1] = (target[0] == 1) * (1 - share)
            probability[0, other] += (target[0] == 1) * share
            values.append(loss(name, torch.log(probability.clamp(min=1e-12)), target))
        curves.append((label, x, values))
    draw("confusion", curves, "probability that the object's positions give to another class")


def compound() -> None:
    """Over the probability of the true class everywhere."""
    x = torch.linspace(0.005, 0.999, 80)
    target = square(14, 27)[None]
    truth = target.double().unsqueeze(1)
    names = ("combo", "exponential_logarithmic", "unified_focal", "unified_focal(asymmetric=False)")
    names += ("0.5*cross_entropy + 0.5*dice",)
    curves = [(n, x, [loss(n, logit(truth * p + (1 - truth) * (1 - p)), target) for p in x]) for n in names]
    draw("compound", curves, "probability of the true class at every position", top=2.5)


def distances() -> None:
    """Over the distance by which a sure answer misses, relative to the largest value; and the weights along a row."""
    target = square(4, 14)[None]
    x = list(range(22))
    curves = []
    for name in ("dice", "boundary", "hausdorff", "hausdorff(alpha=1)"):
        values = torch.tensor([loss(name, logit(square(4, 14, d).double()[None, None]), target) for d in x])
        curves.append((name, x, values / values.abs().max()))
    draw("distances", curves, "distance by which a square of 10 x 10 is shifted", "loss / its largest value")

    objects = torch.zeros(1, 1, SIDE, dtype=torch.int64)
    objects[..., 4:15], objects[..., 19:33] = 1, 2
    border = unet_weight_map(objects[0].numpy().astype("int32"), 10, 5)[0]
    signed = signed_distances((objects > 0).long(), 1)[0, 0, 0]
    penalty = torch.zeros(SIDE)
    for side in (signed < 0, signed > 0):
        distance = signed.abs()[side]
        penalty[side] = (distance.max() - distance) / (distance.max() - distance.min())
    place = list(range(SIDE))
    row = [
        ("border_cross_entropy", place, 1 + torch.from_numpy(border)),
        ("distance_cross_entropy", place, 1 + penalty),
        ("objects", place, (objects[0, 0] > 0).float()),
    ]
    draw("weights", row, "position in a row with two objects", "weight of the cross-entropy")


def contours() -> None:
    """Over the share of wrong positions, scattered or together."""
    target = square(12, 28)[None]
    order = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(0))
    x = torch.linspace(0, 0.25, 20)
    curves = []
    for name in ("length", "active_contour"):
        for label, places in (("scattered", order), ("in rows", torch.arange(SIDE * SIDE))):
            values = []
            for share in x:
                answer = target.flatten().clone()
                chosen = places[: int(share * len(places))]
                answer[chosen] = 1 - answer[chosen]
                values.append(loss(name, logit(answer.double()).view(1, 1, SIDE, SIDE), target))
            curves.append((f"{name}, {label}", x, values))
    draw("contours", curves, "share of wrong positions")


def boxes() -> None:
    """Over the shift of a box, and over its width."""
    true = torch.tensor([[0.0, 0, 10, 10]])
    functions: dict[str, Callable[..., Tensor]] = {
        "iou": box.iou, "giou": box.giou, "diou": box.diou, "ciou": box.ciou,
    }  # fmt: skip
    shifts = torch.linspace(0, 2.5, 60)
    curves = [
        (name, shifts, [function(true + 10 * torch.tensor([d, 0, d, 0]), true) for d in shifts])
        for name, function in functions.items()
    ]
    curves.append(
        (
            "lp_iou(scale=10)",
            shifts,
            [box.lp_iou(true + 10 * torch.tensor([d, 0, d, 0]), true, scale=10) for d in shifts],
        )
    )
    draw("boxes", curves, "shift of a square box, in its widths")


def embedding() -> None:
    """Each term alone, over a distance."""
    x = torch.linspace(0, 4, 80)
    ids = torch.tensor([[1, 1]])
    pull = [discriminative(torch.tensor([[[-d, d]]]), ids, push=0, regularisation=0) for d in x]
    push = [discriminative(torch.tensor([[[0, d]]]), torch.tensor([[1, 2]]), pull=0, regularisation=0) for d in x]
    curves = [("pull: from a position to its mean", x, pull), ("push: between two means", x, push)]
    draw("embedding", curves, "distance", top=9.5)


if __name__ == "__main__":
    mpl.use("agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "everymask", "font.family": "sans-serif"})
    for plot in (positions, regions, confusion, compound, distances, contours, boxes, embedding):
        plot()
