"""Values that are made on first use and kept while there is room."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass
class Kept(Generic[V]):
    """The `limit` most recently used values, made on first use.

    `num_bytes`: of a value; `most_bytes`: of all. Where half of that is taken, the oldest go before another is made:
    it has room then.
    """

    limit: int
    dropped: Callable[[V], None] = lambda value: None
    num_bytes: Callable[[V], int] = lambda value: 0
    most_bytes: int = 2**63
    _values: OrderedDict[Hashable, V] = field(default_factory=OrderedDict[Hashable, V])

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the value under `key`, made now if there is none; the least recently used one may be dropped.

        `dropped` is told of it.
        """
        if key not in self._values:
            self._shrink(self.most_bytes // 2, least=0)
            self._values[key] = make()
            self._shrink(self.most_bytes, least=1)
        self._values.move_to_end(key)
        return self._values[key]

    def _shrink(self, most_bytes: int, least: int) -> None:
        """Drop the oldest values until the others are few and small enough; `least` stay, however large."""
        values = self._values
        while len(values) > self.limit or (
            len(values) > least and sum(map(self.num_bytes, values.values())) > most_bytes
        ):
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
