"""The shape of the house: imports go down, words load no torch, the help answers at once."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.arch

HEAVY = ("torch", "diffusers", "transformers", "peft", "cv2", "scipy")


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import disegno",
        "from disegno import Request, ControlUnit, Settings",
        "import disegno.core.registry, disegno.core.result, disegno.core.errors",
        "import disegno.cli.main, disegno.cli.generate, disegno.cli.annotate, disegno.cli.models, disegno.cli.dataset",
        "import disegno.core.evaluate, disegno.cli.evaluate",
    ],
)
def test_words_and_doors_load_nothing_heavy(statement: str) -> None:
    assert not _loaded_by(statement) & set(HEAVY)


def test_the_package_itself_loads_no_other_module() -> None:
    """Ctrl-C is answered from `__main__` on: what comes before it is next to nothing."""
    root = Path(__file__).parents[2] / "src"
    code = f"import sys\nsys.path.append({str(root)!r})\nbare = set(sys.modules)\nimport disegno\n"
    code += "print(*sorted(set(sys.modules) - bare))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["disegno", "disegno.core", "disegno.core.version"]


def test_every_public_name_is_there() -> None:
    import disegno

    assert len(disegno.__all__) <= 12
    for name in disegno.__all__:
        assert getattr(disegno, name) is not None


def test_the_help_answers_at_once() -> None:
    times: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "disegno.cli.main", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.5, times


def test_imports_go_down_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
