"""A cell as data: each node's ancestor and activation (paper section 3.1 and Algorithm 1)."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from wenet_kernels import WenetError
from wenet_kernels.cells import cell_text, check_cell, read_cell


@dataclass(frozen=True, init=False)
class Genotype:
    """A recurrent cell: a tree of nodes 1..L above the init node 0, some of them averaged into the output.

    Args:
        recurrent: for node i = 1..L a pair (activation, ancestor), the ancestor in 0..i-1.
        concat: the nodes averaged into the output (eq. 3); all of 1..L by default.

    Raises:
        WenetError: an unknown activation, an ancestor out of range, an empty `concat`, or more than 64 nodes.

    Examples:
        >>> from wenet import Genotype
        >>> cell = Genotype([("tanh", 0), ("relu", 1), ("relu", 1)])
        >>> print(cell)
        tanh0 relu1 relu1
        >>> Genotype.from_text("tanh0 relu1 relu1") == cell
        True
    """

    recurrent: tuple[tuple[str, int], ...]
    concat: tuple[int, ...]

    def __init__(self, recurrent: Iterable[tuple[str, int]], concat: Iterable[int] | None = None) -> None:
        pairs = tuple((str(activation), int(ancestor)) for activation, ancestor in recurrent)
        averaged = tuple(range(1, len(pairs) + 1)) if concat is None else tuple(sorted(int(node) for node in concat))
        check_cell(pairs, averaged)
        object.__setattr__(self, "recurrent", pairs)
        object.__setattr__(self, "concat", averaged)

    @property
    def nodes(self) -> int:
        return len(self.recurrent)

    @property
    def activations(self) -> tuple[str, ...]:
        """The activations of nodes 1..L, in order."""
        return tuple(activation for activation, _ in self.recurrent)

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise WenetError(
            "a genotype describes a cell and has no weights; make a layer of it, such as "
            "wenet.nn.DagRNN(input_size, hidden_size, genotype), and call that"
        )

    def __str__(self) -> str:
        """One line, such as "tanh0 relu1 relu1"; `mean` and numbers follow if only some nodes are averaged."""
        return cell_text(self.recurrent, self.concat)

    @classmethod
    def from_text(cls, text: str) -> Genotype:
        """Read what `str` writes.

        Raises:
            WenetError: the text describes no valid cell.
        """
        return cls(*read_cell(text))

    def to_dict(self) -> dict[str, Any]:
        return {"recurrent": [list(pair) for pair in self.recurrent], "concat": list(self.concat)}

    @classmethod
    def from_dict(cls, value: object) -> Genotype:
        """Read what `to_dict` writes.

        Raises:
            WenetError: a missing key, a value of the wrong kind, or an invalid cell.
        """
        try:
            pairs = [(activation, ancestor) for activation, ancestor in value["recurrent"]]  # type: ignore[index]
            concat = value.get("concat")  # type: ignore[attr-defined]
            well_formed = all(isinstance(a, str) and type(j) is int for a, j in pairs)
            well_formed &= concat is None or all(type(node) is int for node in concat)
        except (KeyError, TypeError, ValueError, AttributeError):
            well_formed = False
        if not well_formed:
            raise WenetError('a cell in JSON looks like {"recurrent": [["tanh", 0], ["relu", 1]], "concat": [1, 2]}')
        return cls(pairs, concat)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Read what `to_json` writes.

        Raises:
            WenetError: the text is not JSON, or holds no valid cell.
        """
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise WenetError(f"the cell is not valid JSON: {error}") from None
        return cls.from_dict(value)

    def _repr_html_(self) -> str:
        """A drawing for notebooks, with the cell's one-line text below."""
        return f"<pre>{html.escape(self.draw())}</pre><code>{html.escape(str(self))}</code>"

    def children(self, node: int) -> list[int]:
        """The nodes that read this one."""
        return [i for i, (_, ancestor) in enumerate(self.recurrent, start=1) if ancestor == node]

    def canonical(self) -> Genotype:
        """The same cell with its nodes in an order that does not depend on their numbers.

        Examples:
            >>> print(Genotype.from_text("tanh0 relu0 tanh2").canonical())
            relu0 tanh1 tanh0
        """
        recurrent: list[tuple[str, int]] = []
        concat: list[int] = []

        def shape(node: int) -> tuple[object, ...]:
            return (self.recurrent[node - 1][0], node in self.concat, sorted(map(shape, self.children(node))))

        def add(node: int, ancestor: int) -> None:
            for child in sorted(self.children(node), key=shape):
                recurrent.append((self.recurrent[child - 1][0], ancestor))
                place = len(recurrent)
                concat.extend([place] if child in self.concat else [])
                add(child, place)

        add(0, 0)
        return Genotype(recurrent, concat)

    def draw(self, notes: Mapping[int, str] | None = None) -> str:
        """Draw the cell as a tree of text. Every node reads one ancestor, so a tree shows the whole cell.

        Args:
            notes: remarks to write behind nodes, by node.
        """
        notes = notes or {}
        lines = [f"0 init (x, h){notes.get(0, '')}"]
        lines += self._draw_children(0, "", notes)
        return "\n".join(lines)

    def _draw_children(self, node: int, indent: str, notes: Mapping[int, str]) -> list[str]:
        children = self.children(node)
        lines = []
        for child in children:
            last = child == children[-1]
            unused = "" if child in self.concat else "  (not averaged)"
            branch, activation = "└─" if last else "├─", self.recurrent[child - 1][0]
            lines.append(f"{indent}{branch} {child} {activation}{unused}{notes.get(child, '')}")
            lines += self._draw_children(child, indent + ("   " if last else "│  "), notes)
        return lines
