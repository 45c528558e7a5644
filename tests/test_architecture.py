"""The shape of the package: a room imports only from rooms above it, and no module grows too long."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "robuq_bench"
SHARED = ["errors", "files", "seeds", "devices", "provenance", "progress"]
# `allocate` stands below `train`, because a sensitivity profile is taken after some steps of training.
ROOMS = ["config", "data", "models", "quant", "train", "allocate", "engine", "sample", "metrics", "measure", "report"]
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """First names below robuq_bench that `path` imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("robuq_bench.")} - {"__version__"}


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_every_folder_is_a_known_room():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*SHARED, "__init__", "cli", "warm"}


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent != PACKAGE], ids=name)
def test_a_room_imports_only_from_rooms_above(path):
    room = path.relative_to(PACKAGE).parts[0]
    assert imported(path) <= {*SHARED, *ROOMS[: ROOMS.index(room) + 1]}


def test_shared_modules_import_no_room():
    for stem in SHARED:
        assert imported(PACKAGE / f"{stem}.py") <= set(SHARED) - {stem}


def test_the_command_line_imports_rooms_only_by_name():
    """So that `robuq-bench --help` is quick and each verb loads what it needs."""
    assert imported(PACKAGE / "cli.py") == {"errors"}
    assert imported(PACKAGE / "warm.py") <= {*SHARED, "cli"}
    assert imported(PACKAGE / "__init__.py") == set()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_module_is_long(path):
    assert len(path.read_text().splitlines()) <= 400


def test_modules_of_one_room_do_not_import_each_other_in_a_circle():
    graph = {path: neighbours(path) for path in MODULES}
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, " -> ".join(map(name, (*trail, path)))
        if path not in done:
            for other in graph[path]:
                visit(other, (*trail, path))
            done.add(path)

    for path in MODULES:
        visit(path, ())


def neighbours(path: Path) -> set[Path]:
    """Modules imported at the top of `path` (imports inside functions may close a circle)."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("robuq_bench"):
            for full in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                file = PACKAGE.joinpath(*full.split(".")[1:]).with_suffix(".py")
                found |= {file} & set(MODULES)
    return found
