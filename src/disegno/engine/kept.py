"""Values that are made on first use and kept while there is room."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass
class Kept(Generic[V]):
    """The `limit` most recently used values, made on first use.

    The oldest go before another is made: it has room then. `num_bytes`: of a value; `most_bytes`: of all, with a new
    one that is taken to be as large as the largest.
    """

    limit: int
    dropped: Callable[[V], None] = lambda value: None
    num_bytes: Callable[[V], int] = lambda value: 0
    most_bytes: int = 2**63
    _values: OrderedDict[Hashable, V] = field(default_factory=OrderedDict[Hashable, V])

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the value under `key`, made now if there is none; the least recently used ones may be dropped.

        `dropped` is told of them, also where `make` then fails.
        """
        if key not in self._values:
            largest = max(map(self.num_bytes, self._values.values()), default=0)
            self._shrink(self.limit - 1, self.most_bytes - largest, least=0)
            self._values[key] = make()
            self._shrink(self.limit, self.most_bytes, least=1)
        self._values.move_to_end(key)
        return self._values[key]

    def _shrink(self, limit: int, most_bytes: int, least: int) -> None:
        """Drop the oldest values until the others are few and small enough; `least` stay, however large."""
        values = self._values
        while len(values) > limit or (len(values) > least and sum(map(self.num_bytes, values.values())) > most_bytes):
            self.dropped(values.popitem(last=False)[1])

    def drop(self, wanted: Callable[[Hashable, V], bool]) -> None:
        """Drop what `wanted` says yes to, by key and value."""
        for key in [key for key, value in self._values.items() if wanted(key, value)]:
            self.dropped(self._values.pop(key))

    def items(self) -> list[tuple[Hashable, V]]:
        """Return what is kept, with its keys."""
        return list(self._values.items())

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
