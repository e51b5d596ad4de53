"""Where things are: the rooms of the package, what each may import, and that the documentation shows the real tree."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "duckling_provider"
ARCHITECTURE = ROOT / "docs" / "internals" / "architecture.md"

#: A room may import from itself and from the rooms before it. A dot is a folder in a folder.
CORE = [
    "base",
    "config",
    "replica",
    "stores",
    "formats",
    "backup.inventory",
    "backup.reading",
    "backup.making",
    "backup.retention",
    "backup",
    "replication.model",
    "replication.mysql",
    "replication.binlog",
    "replication.copy",
    "replication.ddl",
    "replication.apply",
    "replication.validate",
    "replication",
    "oversight",
    "node_server",
]
ADAPTERS = [
    "get_provider_info",
    "timetable",
    "hooks",
    "tasks",
    "links",
    "triggers",
    "operators",
    "sensors",
    "dags",
    "web.services",
    "web.api",
    "web.page",
    "web",
    "plugins",
    "cli",
    # Old import paths that stay valid.
    "core",
    "dag_factory",
]
ORDER = [*CORE, *ADAPTERS]

#: The only Python files beside the folders: the version, what Airflow asks for, and public import paths.
LOOSE = {"__init__.py", "dag_factory.py", "get_provider_info.py", "timetable.py"}
#: More than this can't be taken in at a glance. `__init__.py` does not count.
MOST_MODULES = 13

#: Names that are spelt the same in two places mean that one of them was not named after what it does.
UNIQUE = ("Report", "Server", "Status", "Finding", "Checksum", "identify", "LOCK_SUFFIX")


def modules() -> dict[str, Path]:
    """Dotted names below the package, ``inventory.names``; a folder's ``__init__`` has the folder's own name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def room(module: str) -> str:
    """The longest of `ORDER` that `module` lies in."""
    inside = [name for name in ORDER if module == name or module.startswith(f"{name}.")]
    if not inside:
        pytest.fail(f"{module} is in no room of ORDER in {Path(__file__).name}: where a new one stands is a decision")
    return max(inside, key=len)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(path: Path) -> set[str]:
    """The modules of ours that are imported anywhere in `path`, in functions too."""
    found = set()
    for node in ast.walk(tree_of(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "duckling_provider" and rest:
                found.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return found - {""}


def test_a_module_imports_its_own_room_and_earlier_ones():
    later = [
        f"{module} ({room(module)}) imports {name} ({room(name)})"
        for module in sorted(MODULES.keys() - {""})
        for name in sorted(imports(MODULES[module]))
        if ORDER.index(room(name)) > ORDER.index(room(module))
    ]
    assert later == []


def test_no_modules_import_one_another_in_a_circle():
    """Not within a room either, nor by imports in functions, which hide it from Python."""
    graph = {module: imports(path) - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_the_package_itself_imports_nothing_of_ours():
    assert imports(MODULES[""]) == set()


def test_the_top_level_has_the_known_names_only():
    folders = {name.partition(".")[0] for name in ORDER} - {Path(name).stem for name in LOOSE}
    found = {path.name for path in PACKAGE.iterdir() if path.name not in {"__pycache__", "py.typed"}}
    assert found == LOOSE | folders


def test_no_folder_has_more_modules_than_can_be_taken_in():
    for folder in {path.parent for path in MODULES.values()}:
        found = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(found) <= MOST_MODULES, f"{folder.relative_to(ROOT)}: {sorted(found)}"


def test_each_room_says_what_it_is_for():
    silent = [str(p.parent.relative_to(ROOT)) for p in PACKAGE.rglob("__init__.py") if not p.read_text().strip()]
    assert silent == []


def test_names_that_confused_are_unique():
    found: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in tree_of(path).body:
            names = [getattr(node, "name", "")]
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                if name in UNIQUE:
                    found.setdefault(name, []).append(module)
    assert {name: places for name, places in found.items() if len(places) > 1} == {}


def test_only_its_own_adapters_know_the_node_server():
    """It could be removed as one: nothing of the core, the API or the page imports it."""
    known = {room(module) for module, path in MODULES.items() if module and "node_server" in map(room, imports(path))}
    assert known <= {"node_server", "hooks", "operators", "cli"}


def test_making_a_backup_and_reading_one_back_know_nothing_of_each_other():
    """What they share lies in the inventory: a restore must not depend on how backups are made today."""

    def used(by: str) -> set[str]:
        return {
            room(name) for module, path in MODULES.items() if module and room(module) == by for name in imports(path)
        }

    assert "backup.reading" not in used("backup.making")
    assert "backup.making" not in used("backup.reading")


@pytest.mark.slow
def test_the_core_and_the_command_line_import_no_airflow():
    """In a fresh process, since another test may have imported Airflow into this one."""
    program = """
import importlib, json, pkgutil, sys
for name in sys.argv[1:]:
    module = importlib.import_module(f"duckling_provider.{name}")
    found = [sub.name for sub in pkgutil.walk_packages(module.__path__, module.__name__ + ".")]
    for sub in found:
        importlib.import_module(sub)
    print(json.dumps([name, len(found), [name for name in sys.modules if name.split(".")[0] == "airflow"]]))
"""
    names = [*dict.fromkeys(name.partition(".")[0] for name in CORE), "cli", "core"]
    result = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    expected = [[name, sum(module.startswith(f"{name}.") for module in MODULES), []] for name in names]
    assert [json.loads(line) for line in result.stdout.splitlines()] == expected


def leads_nowhere(name: str) -> bool:
    """Whether `name`, such as ``stores.s3.S3Store`` or ``backup/making/seal``, begins in a room and is not there."""
    parts = re.split(r"[./]", name)
    for room, part in pairwise(parts):
        folders = [path.parent for path in MODULES.values() if path.name == "__init__.py" and path.parent.name == room]
        bound = {alias.name for f in folders for node in tree_of(f / "__init__.py").body for alias in names_of(node)}
        if not folders or part in bound or any((folder / f"{part}.py").exists() for folder in folders):
            return False
        if not any((folder / part).is_dir() for folder in folders):
            # `dags/duckling.py` is a file of the repository, `replica.db` one of a user's.
            return not (ROOT / name).exists() and parts[-1] != "db"
    return False


def names_of(node: ast.stmt) -> list[ast.alias]:
    return node.names if isinstance(node, ast.Import | ast.ImportFrom) else []


def test_a_module_that_a_text_names_by_its_room_is_there():
    """In documents, comments and docstrings, between backticks."""
    texts = [ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
    for folder in ("benchmarks", "demo", "duckling_provider", "tests"):
        texts += (ROOT / folder).rglob("*.py")
    named = {(text, name) for text in texts for name in re.findall(r"`(\w+(?:[./]\w+)+)`", text.read_text())}
    stale = sorted(f"{text.relative_to(ROOT)}: {name}" for text, name in named if leads_nowhere(name))
    assert not stale, "\n".join(stale)


def test_the_documented_tree_is_the_real_one():
    """The block of docs/internals/architecture.md with a line ``folder/  module, module`` for each folder."""
    tree = re.search(r"```\nduckling_provider/\n(.*?)```", ARCHITECTURE.read_text(), re.DOTALL)
    assert tree is not None
    shown: dict[str, set[str]] = {}
    folder = ""
    for line in tree[1].splitlines():
        head = re.match(r"  ([a-z_/]*/)\s+(.*)", line)
        names = line
        if head:
            folder, names = head[1].rstrip("/"), head[2]
        elif not line.startswith("      "):
            folder = ""
        shown.setdefault(folder, set()).update(re.findall(r"[a-z_0-9]+", names.partition("#")[0]))
    real: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            real.setdefault(str(path.parent.relative_to(PACKAGE)).removeprefix("."), set()).add(path.stem)
    assert shown == real
    # From top to bottom, as imports may go; the modules beside the folders come last.
    folders = [name.replace(".", "/") for name in ORDER if f"{name}.py" not in LOOSE]
    assert [folder for folder in shown if folder] == folders
