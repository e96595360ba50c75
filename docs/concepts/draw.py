"""Draw the pictures of engine.md: `python docs/concepts/draw.py` writes tree.svg and slots.svg beside this file.

The tree and its row are not drawn by hand: they are what `luthier.data.batches` makes of four short examples.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from luthier.data.batches import FlatBatch, Share, flat_batches
from luthier.data.examples import Encoded

WORDS = ("<s>", "Is", "it", "red", "hot", "he", "in")
EXAMPLES = ("<s> Is it red", "<s> Is it hot", "<s> Is he in")
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #222; text-anchor: middle; dominant-baseline: central }
.left { text-anchor: start } .small { font-size: 11px; fill: #666 } .mono { font-family: ui-monospace, monospace }
.line { stroke: #888; fill: none; stroke-width: 1.5 } .cell { stroke: #bbb; fill: none }
.a { fill: #c7dcf7 } .b { fill: #f9d8b8 } .c { fill: #cfe8cd } .d { fill: #e3d3f0 } .w { fill: #ececec }
@media (prefers-color-scheme: dark) {
  text { fill: #e8e8e8 } .small { fill: #aaa } .line { stroke: #999 } .cell { stroke: #555 }
  .a { fill: #27517f } .b { fill: #7d4a17 } .c { fill: #2f6431 } .d { fill: #573977 } .w { fill: #3a3a3a }
}
</style>"""
COLOURS = "abcd"


def batch() -> FlatBatch:
    """The row of the three examples; the last word of each is trained."""
    rows = []
    for text in EXAMPLES:
        ids = np.array([WORDS.index(word) for word in text.split()], np.int32)
        rows.append(Encoded(text, ids, np.arange(len(ids)) == len(ids) - 1))
    (flat,) = flat_batches([Share(0, rows, 1 / len(rows))], budget=100)
    return flat


def box(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A rectangle with round corners; `kind` is its class in STYLE."""
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>'


def text(x: float, y: float, words: object, kind: str = "") -> str:
    """Words around a point."""
    escaped = str(words).replace("&", "&amp;").replace("<", "&lt;")
    return f'<text class="{kind}" x="{x}" y="{y}">{escaped}</text>'


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    """A whole picture, in both colour themes."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">'
    return "\n".join([head, f"<title>{title}</title>", STYLE, *parts, "</svg>"]) + "\n"


def segments(flat: FlatBatch) -> np.ndarray:
    """The number of the unbranched run each token lies in."""
    return np.cumsum(np.diff(flat.positions_T, prepend=-1) != 1)


def tree() -> str:
    """The trie above its row, and beside it who may attend to whom."""
    flat = batch()
    runs = segments(flat)
    parents = [max((j for j in range(i) if i < flat.ends_T[j]), default=-1) for i in range(len(runs))]
    leaves = [i for i in range(len(runs)) if i not in parents]
    height = {leaf: 30 + 44 * k for k, leaf in enumerate(leaves)}
    for i in reversed(range(len(runs))):
        if i not in height:
            below = [height[k] for k in range(len(runs)) if parents[k] == i]
            height[i] = sum(below) / len(below)
    parts = [
        text(8, 175, "row", "left small"),
        text(8, 197, "position", "left small"),
        text(8, 219, "end", "left small"),
    ]
    for i in range(len(runs)):
        x, y = 50 + 78 * flat.positions_T[i], height[i]
        if parents[i] >= 0:
            above = height[parents[i]]
            parts.append(f'<path class="line" d="M{x - 48} {above} C{x - 24} {above} {x - 30} {y} {x - 10} {y}"/>')
        parts += [box(x - 10, y - 14, 42, 28, COLOURS[runs[i] % 4]), text(x + 11, y, WORDS[flat.tokens_T[i]], "mono")]
        cell = 80 + 42 * i
        parts += [box(cell - 19, 161, 38, 28, COLOURS[runs[i] % 4]), text(cell, 175, WORDS[flat.tokens_T[i]], "mono")]
        parts += [text(cell, 197, flat.positions_T[i]), text(cell, 219, flat.ends_T[i])]
    parts.append(text(530, 20, "token i may attend to j: j ≤ i < ends[j]", "small"))
    for i in range(len(runs)):
        parts += [text(418, 60 + 24 * i, WORDS[flat.tokens_T[i]], "mono small")]
        parts += [text(452 + 24 * i, 42, WORDS[flat.tokens_T[i]], "mono small")]
        for j in range(len(runs)):
            seen = j <= i < flat.ends_T[j]
            parts.append(box(441 + 24 * j, 49 + 24 * i, 22, 22, COLOURS[runs[j] % 4] if seen else "cell"))
    return svg(640, 236, "Three examples as one token tree, and who attends to whom", parts)


def slots() -> str:
    """One row of tokens, three slots: the frozen product is one, the low-rank parts and all that follows are apart."""
    lines = {
        "one micro-batch": (44, "slot {}: its rows"),
        "the base, shared": (98, ""),
        "adapters, models/lora.py": (150, "+ s{} x A{}ᵀ B{}ᵀ"),
        "one backward pass": (204, "loss {} / its count"),
        "flat buffers, one a slot": (258, "AdamW, rate, clip"),
    }
    parts = [box(10, 98, 477, 30, "w"), text(248, 113, "x Wᵀ: frozen, one product for all rows")]
    for note, (y, words) in lines.items():
        parts.append(text(500, y + 15, note, "left small"))
        for slot, (start, width) in enumerate(((10, 150), (160, 130), (290, 200))):
            middle = start + width / 2
            if words:
                parts += [
                    box(start, y, width - 3, 30, COLOURS[slot]),
                    text(middle - 1, y + 15, words.format(*[slot] * 3)),
                ]
            if y < 258:
                parts.append(f'<path class="line" d="M{middle} {y + 31} v20"/>')
    return svg(660, 300, "Three slots on one frozen base", parts)


if __name__ == "__main__":
    for name, picture in (("tree", tree()), ("slots", slots())):
        Path(__file__).with_name(f"{name}.svg").write_text(picture, encoding="utf-8")
