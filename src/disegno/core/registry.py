"""Name -> lazily imported thing: from a folder's own files and from other packages' entry points.

A registry never imports a member to list it: the names are the file names (underscores become hyphens) and the entry
points' names. A third-party package adds a member with, in its pyproject.toml,

    [project.entry-points."disegno.annotators"]
    my-annotator = "my_package.my_annotator"
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from disegno.core.errors import UnknownName


@dataclass(frozen=True)
class Registry:
    """The members of one kind.

    `package` holds one module a member; `group` is the entry point group of other packages.
    """

    what: str
    package: str
    group: str
    not_members: frozenset[str] = frozenset({"__init__", "base"})

    @cached_property
    def _targets(self) -> dict[str, str]:
        folder = Path(__file__).parent.parent.joinpath(*self.package.split(".")[1:])
        own = {
            path.stem.replace("_", "-"): f"{self.package}.{path.stem}"
            for path in sorted(folder.glob("*.py"))
            if path.stem not in self.not_members and not path.stem.startswith("_")
        }
        others = {point.name: point.value for point in entry_points(group=self.group)}
        return own | {name: target for name, target in others.items() if name not in own}

    def names(self) -> list[str]:
        """Return every member's name, sorted; nothing is imported."""
        return sorted(self._targets)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        return name.lower().replace("_", "-") in self._targets

    def load(self, name: str) -> ModuleType:
        """Return the member's module, imported now. Raises UnknownName with the nearest names."""
        target = self._targets.get(name.lower().replace("_", "-"))
        if target is None:
            raise UnknownName.of(self.what, name, self.names())
        return import_module(target.partition(":")[0])
