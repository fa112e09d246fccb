"""Draws the tree of docs/trees.md, whose labels were given by hand: python docs/draw_tree.py [FILE.png]"""

from __future__ import annotations

import sys
from pathlib import Path

from ritornello.data.brackets import parse_trees
from ritornello.pictures import draw_tree, save

TREE = "(4 (3 (2 Not) (1 (2 a) (1 (0 dull) (2 moment)))) (4 (2 and) (4 (2 a) (4 (4 lovely) (2 end)))))"

if __name__ == "__main__":
    save(draw_tree(parse_trees(TREE)), *sys.argv[1:] or [Path(__file__).parent / "pictures" / "tree.png"])
