"""The house rules that a machine can check: imports run one way, and the public names are there."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import neuralfuse

SOURCE = Path(neuralfuse.__file__).parent
# From the ground up; docs/design.md says what each is for.
ROOMS = [
    {"errors"},
    {"seeds", "files", "ranges", "config", "published", "plugins", "runs", "tables"},
    {"quant", "faults", "wire"},
    {"memory"},
    {"data", "nets"},
    {"energy"},
    {"fuse"},
    {"export", "scoring"},
    {"train"},
    {"evaluation"},
    {"blackbox", "pipeline", "serve", "standin"},
    {"methods", "steps"},
    {"compare", "plan", "reproduce"},
    {"report"},
    {"demo"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}


def imports_of(path: Path, *, types: bool = False) -> set[str]:
    """The rooms that a module imports, inside functions too; those for type checkers only if ``types`` asks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING" and not types:
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("neuralfuse."):
            names.add(node.module.split(".")[1])
        if isinstance(node, ast.ImportFrom) and node.module == "neuralfuse":
            names |= {alias.name for alias in node.names}
    return names


def modules() -> dict[str, Path]:
    """The modules of the package by their dotted names."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        parts = ("neuralfuse", *path.relative_to(SOURCE).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def test_no_modules_import_each_other_in_a_circle():
    """Imports for type checkers only and those inside functions count too."""
    known = modules()
    imports: dict[str, set[str]] = {}
    for name, path in known.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "neuralfuse":
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {one if one in known else str(node.module) for one in inner}
        imports[name] = found - {name}
    assert imports["neuralfuse.cli.main"]
    graph = graphlib.TopologicalSorter(imports)
    graph.prepare()  # raises a CycleError that names the circle


def test_compare_and_reproduce_are_siblings():
    for room, other in (("compare", "reproduce"), ("reproduce", "compare")):
        assert not any(other in imports_of(path, types=True) for path in (SOURCE / room).rglob("*.py"))


def test_imports_run_one_way():
    seen = set()
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        seen.add(room)
        for other in imports_of(path) - {room}:
            assert FLOOR[other] <= FLOOR[room], f"{path} imports {other}, which lies above it"
            assert other == room or FLOOR[other] < FLOOR[room] or {other, room} <= {"seeds", "files", "ranges"}
    assert seen == set(FLOOR)


def test_public_names_are_there_once_and_complete():
    assert all(hasattr(neuralfuse, name) for name in neuralfuse.__all__)
    assert len(set(neuralfuse.__all__)) == len(neuralfuse.__all__) <= 40
    assert set(neuralfuse.__all__) <= set(dir(neuralfuse))
    assert {"save_chip", "load_chip", "Running", "Activations"} <= set(neuralfuse.__all__)
    text = (SOURCE / "__init__.pyi").read_text(encoding="utf-8")
    assert all(text.count(f" import {name} as {name}\n") == 1 for name in neuralfuse.__all__)


def test_pictures_stand_above_records():
    """Charts are made by `report` alone; below it, only faults are drawn. Nobody touches matplotlib's global state."""
    drawing = {path for path in SOURCE.rglob("*.py") if "matplotlib" in path.read_text(encoding="utf-8")}
    below = {path.relative_to(SOURCE).as_posix() for path in drawing if "report" not in path.relative_to(SOURCE).parts}
    assert below == {"memory/draw.py"}
    assert len(drawing) > len(below)
    assert not any("pyplot" in path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))


def test_the_design_page_names_every_room():
    page = (SOURCE.parents[1] / "docs" / "design.md").read_text(encoding="utf-8")
    for room in FLOOR:
        assert f"`{room}`" in page, room


def test_files_stay_readable():
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 330, path
