"""`everymask models`: the weights that come with the package, and those that others publish."""

from __future__ import annotations

from typing import Any

from everymask.cli.application import Common

EXAMPLES = """\
  everymask models
  everymask predict my_images/ --model nuclei --out results/"""


def command(*, common: Common = Common()) -> None:  # noqa: B008 - frozen, and cyclopts reads the default
    """List the models that `predict` and `evaluate` know by name."""
    from everymask.cli.output import Output
    from everymask.weights import MODELS, PUBLISHED, find_model, read_metadata

    output = Output(common)
    found: list[dict[str, Any]] = []
    for name, source in MODELS.items():
        path = find_model(name)
        metadata = read_metadata(path)
        found.append(
            {
                "name": name,
                "title": source.title,
                "licence": source.licence,
                "bytes": path.stat().st_size,
                "file": path,
                "method": metadata["method"],
                "categories": [each["name"] for each in metadata["categories"]],
                "metadata": metadata,
            }
        )
    rows = [
        (each["name"], each["method"], f"{each['bytes'] / 1e6:.1f} MB", each["licence"], each["title"])
        for each in found
    ]
    for name, published in PUBLISHED.items():
        size = f"{published.size / 1e6:.1f} MB, downloaded"
        rows.append((name, published.method, size, published.licence, published.title))
        found.append(
            {"name": name, "title": published.title, "licence": published.licence, "bytes": published.size}
            | {"method": published.method, "url": published.url, "sha256": published.sha256, "source": published.source}
        )
    output.rows(("model", "method", "size", "licence", "what it finds"), rows)
    output.result(found)
