"""A tree as a picture: its nodes coloured by their labels, its words below."""

from __future__ import annotations

from typing import Any

import numpy as np

from ritornello.data.trees import Trees, are_integers
from ritornello.errors import ArgumentError
from ritornello.pictures.figure import new_figure
from ritornello.structures import spans


def draw_tree(trees: Trees, which: int = 0, *, shares: np.ndarray | None = None, title: str = "") -> Any:
    """Draws one tree.

    Labels that are numbers are coloured from red (the least) to green (the greatest), others each in a colour of its
    own.

    Args:
        trees: whose nodes stand in the order of opening brackets.
        which: the tree's number.
        shares: (nodes of all trees, labels) probabilities. With them colours are of the mean of numbers, and the
            outline is the darker the surer the model is.
        title: above the picture.

    Returns:
        A `matplotlib.figure.Figure`; `ritornello.pictures.save` writes it.

    Raises:
        ArgumentError: no such tree, nodes in another order, or matplotlib is not installed.

    Example:
        >>> from ritornello.data.brackets import parse_trees
        >>> figure = draw_tree(parse_trees("(3 (2 The) (4 best))"))
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['3', '2', 'The', '4', 'best']
    """
    if not 0 <= which < len(trees):
        raise ArgumentError(f"There is no tree {which}; there are {len(trees)}, from 0.")
    nodes = trees.forest.nodes_of(which)
    tree = trees[which]
    x, y = _places(tree)
    width, height = max(3.0, 0.72 * (x.max() + 1)), max(2.0, 0.62 * (y.max() + 2))
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-0.7, x.max() + 0.7)
    axes.set_ylim(-1.3, y.max() + 0.6)
    axes.set_title(title, parse_math=False)
    for child, parent in enumerate(tree.forest.parents.tolist()):
        if parent >= 0:
            axes.plot(x[[child, parent]], y[[child, parent]], color="0.6", linewidth=1.2, zorder=1)
    own = None if shares is None else shares[nodes]
    colours = _colours(tree, own)
    sure = np.ones(len(x)) if own is None else own.max(1)
    shape = "circle" if max(map(len, tree.label_names), default=0) < 3 else "round"
    for node, (label, word) in enumerate(zip(tree.labels.tolist(), tree.words.tolist(), strict=True)):
        box = {"boxstyle": f"{shape},pad=0.3", "facecolor": colours[node], "edgecolor": str(0.75 * (1 - sure[node]))}
        name = tree.label_names[label] if label >= 0 else ""
        plain = {"fontsize": 9, "parse_math": False}  # a word such as "$5$" is no formula
        axes.text(x[node], y[node], name, ha="center", va="center", bbox=box, zorder=2, **plain)
        if word >= 0:
            axes.text(x[node], y[node] - 0.55, tree.word_names[word], ha="right", va="top", rotation=40, **plain)
    return figure


def _places(tree: Trees) -> tuple[np.ndarray, np.ndarray]:
    """Leaves side by side, and each node above the middle of its own."""
    starts, lengths = spans(tree.forest)
    return starts + (lengths - 1) / 2, tree.forest.heights.astype(float)


def _colours(tree: Trees, shares: np.ndarray | None) -> list[Any]:
    from matplotlib import colormaps

    names = list(tree.label_names)
    if not names or not are_integers(names):
        palette = colormaps["Set3"](range(12))
        return ["white" if label < 0 else palette[label % len(palette)] for label in tree.labels.tolist()]
    values = np.array([int(name) for name in names], float)
    scale = (values - values.min()) / max(1.0, values.max() - values.min())
    map_ = colormaps["RdYlGn"]
    if shares is not None:
        return [map_(0.12 + 0.76 * float(value)) for value in shares @ scale]
    return ["white" if label < 0 else map_(0.12 + 0.76 * float(scale[label])) for label in tree.labels.tolist()]
