"""What ran within what: the events of a thread as trees, with the time that each spent by itself."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sgl.profiles.trace import Event

_SLACK_US = 0.02
"""One event that ends when another begins may seem to end after that: times are floats, of weeks in microseconds."""


@dataclass(slots=True)
class Node:
    """An event and those within it, in order."""

    event: Event
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.event.name

    @property
    def self_us(self) -> float:
        """Without the time of what is within."""
        return max(self.event.duration_us - sum(child.event.duration_us for child in self.children), 0.0)

    def walk(self) -> Iterator[Node]:
        """This one and all within."""
        yield self
        for child in self.children:
            yield from child.walk()

    def path(self) -> Iterator[Node]:
        """This one and those around it, inner ones first."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


def grow(events: Iterable[Event]) -> list[Node]:
    """The outermost events of one thread, in order, with everything within."""
    roots: list[Node] = []
    around: list[Node] = []
    for event in sorted(events, key=lambda event: (event.begin_us, -event.duration_us)):
        while around and around[-1].event.end_us <= event.begin_us + _SLACK_US:
            around.pop()
        node = Node(event, around[-1] if around else None)
        (around[-1].children if around else roots).append(node)
        around.append(node)
    return roots


class Places:
    """Finds what a thread was doing at a moment."""

    def __init__(self, roots: Sequence[Node]) -> None:
        self._roots = roots

    def at(self, when_us: float) -> Node | None:
        """The innermost event of that moment."""
        found: Node | None = None
        level = self._roots
        while level:
            place = bisect_right(level, when_us, key=lambda node: node.event.begin_us) - 1
            if place < 0 or level[place].event.end_us <= when_us:
                return found
            found = level[place]
            level = found.children
        return found
