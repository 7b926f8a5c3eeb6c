"""Values that are made on first use and kept while there is room."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass
class Kept(Generic[V]):
    """The `limit` most recently used values, made on first use."""

    limit: int
    dropped: Callable[[V], None] = lambda value: None
    _values: OrderedDict[Hashable, V] = field(default_factory=OrderedDict[Hashable, V])

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the value under `key`, made now if there is none; the least recently used one may be dropped.

        `dropped` is told of it.
        """
        if key not in self._values:
            self._values[key] = make()
            while len(self._values) > self.limit:
                self.dropped(self._values.popitem(last=False)[1])
        self._values.move_to_end(key)
        return self._values[key]

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
