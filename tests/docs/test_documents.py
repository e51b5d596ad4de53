"""What the documents promise about themselves: length, links, anchors, examples, and a few facts of the code."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from duckling_provider.config.databases import load

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "duckling_provider"
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PLACEHOLDER = "64 hex digits from: duckling keygen"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Of the headings, as GitHub makes them: a repeated one gets a number."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", prose(path), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        repeats = sum(re.sub(r"-\d+$", "", known) == slug for known in found)
        found.append(f"{slug}-{repeats}" if repeats else slug)
    return set(found)


def links(path: Path) -> Iterator[str]:
    """Of Markdown and of the HTML between it, but for those to other sites."""
    text = re.sub(r"`[^`\n]*`", "", prose(path))
    for target in re.findall(r"\]\(<?([^)\s>]+)>?\)|(?:src|srcset|href)=\"([^\"]+)\"", text):
        link = target[0] or target[1]
        if not re.match(r"[a-z]+:", link):
            yield link


def examples(language: str) -> Iterator[tuple[str, str]]:
    """(document, code) of each block of `language`."""
    for path in DOCUMENTS:
        for code in re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
            yield name_of(path), code


def test_the_readme_has_at_most_700_words() -> None:
    assert len(README.read_text().split()) <= 700


def test_the_readme_keeps_the_two_commands() -> None:
    assert {"`make demo`", "`make test`"} <= set(re.findall(r"`[^`\n]+`", README.read_text()))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    broken = []
    for link in links(path):
        file, _, anchor = link.partition("#")
        target = (path.parent / unquote(file)).resolve() if file else path
        if not target.exists() or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            broken.append(link)
    assert broken == []


def test_the_index_leads_to_every_document() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert [name_of(path) for path in (ROOT / "docs").rglob("*.md") if path != index and path not in linked] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_lines_of_prose_end_at_100_columns(path: Path) -> None:
    # Rows of tables, and lines that are one long link, can't be broken.
    free = ("|", "<", "!", "#", "[")
    assert [line for line in prose(path).splitlines() if len(line) > 100 and not line.lstrip().startswith(free)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_the_actor_is_named(path: Path) -> None:
    assert re.findall(r"\b(?:somebody|nobody|whoever|anew)\b", path.read_text(), re.IGNORECASE) == []


def test_every_whole_databases_json_in_the_documents_works(tmp_path: Path) -> None:
    whole = [(name, json.loads(code)) for name, code in examples("json")]
    whole = [(name, entries) for name, entries in whole if isinstance(entries, list)]
    assert {name for name, _ in whole} >= {"README.md", "docs/start/install.md", "docs/reference/configuration.md"}
    for name, entries in whole:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        path = data / "databases.json"
        # The one value that the reader must fill in.
        path.write_text(json.dumps(entries).replace(PLACEHOLDER, "0f" * 32))
        path.chmod(0o600)
        installation = load({"DATA_PATH": str(data)})
        assert (name, installation.problems, installation.warnings) == (name, (), ())
        assert len(installation.databases) == len(entries)


def test_the_commands_in_the_documents_exist() -> None:
    from duckling_provider.cli.app import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {str(group.name) for group in app.registered_groups}
    used: dict[str, str] = {}
    for name, code in examples("console"):
        for command in re.findall(r"^\$ duckling ([a-z][a-z-]*)", code, re.MULTILINE):
            used.setdefault(command, name)
    assert len(used) > 8
    assert {command: name for command, name in used.items() if command not in known} == {}


def test_the_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        for line in re.findall(r"`make ([^`\n]+)`|^\$ make (.+)$", path.read_text(), re.MULTILINE):
            words = (line[0] or line[1]).partition("#")[0].split()
            assert words[0] in targets, f"{name_of(path)}: make {words[0]}"


@pytest.mark.slow
def test_the_dags_in_the_documents_are_dags(tmp_path: Path) -> None:
    """In a process with an Airflow of its own."""
    blocks = [code for _, code in examples("python") if "airflow" in code]
    assert blocks
    (tmp_path / "databases.json").write_text("[]")
    environ = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "DATA_PATH": str(tmp_path)}
    for code in blocks:
        name = re.findall(r"^(\w+)\(\)$", code, re.MULTILINE)[-1]
        program = f"{code}\nprint(*{name}().task_ids)"
        done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split("\n")[-2].split() == re.findall(r'task_id="(\w+)"', code)


# ---- facts of the code --------------------------------------------------------------------------------------------


def test_the_documented_modules_alone_open_replicas_by_duckdb() -> None:
    """DuckDB drops its lock when its process closes any descriptor of the file: architecture.md states the rule."""
    opening = set()
    for path in PACKAGE.rglob("*.py"):
        if "duckdb.connect" not in (text := path.read_text()):
            continue
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        if any(ast.unparse(call.func) == "duckdb.connect" for call in calls):
            opening.add(str(path.relative_to(PACKAGE).with_suffix("")))
    text = (ROOT / "docs" / "internals" / "architecture.md").read_text()
    stated = re.search(r"\*\*Who opens a replica by DuckDB\.\*\*(.*?)\n\n", text, re.DOTALL)
    assert stated is not None
    assert opening == {name for name in re.findall(r"`([a-z_/]+)`", stated[1]) if (PACKAGE / f"{name}.py").exists()}


def test_the_documented_sizes_of_pieces_are_the_real_ones() -> None:
    from duckling_provider.stores.fetch import PIECE

    text = (ROOT / "docs" / "internals" / "architecture.md").read_text()
    assert f"pieces of {PIECE // 1024} KiB" in text


def test_every_operator_and_its_parameters_are_documented() -> None:
    text = (ROOT / "docs" / "reference" / "dags.md").read_text()
    missing = []
    for folder in ("operators", "sensors", "triggers", "hooks"):
        for path in (PACKAGE / folder).glob("*.py"):
            for node in ast.parse(path.read_text()).body:
                if not isinstance(node, ast.ClassDef):
                    continue
                section = re.search(rf"^### `{node.name}`\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
                if section is None:
                    missing.append(node.name)
                    continue
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                        names = [a.arg for a in (*method.args.args, *method.args.kwonlyargs) if a.arg != "self"]
                        missing += [f"{node.name}.{name}" for name in names if f"`{name}`" not in section[1]]
    assert missing == []


def test_every_dag_and_task_is_documented() -> None:
    from duckling_provider.dags.ids import TASKS, dag_id

    text = (ROOT / "docs" / "reference" / "dags.md").read_text()
    for kind, tasks in TASKS.items():
        assert f"`{dag_id(kind, '<id>')}`" in README.read_text()
        section = re.search(rf"^### `{dag_id(kind, '<id>')}`\n(.*?)(?=^#)", text, re.DOTALL | re.MULTILINE)
        assert section is not None, kind
        assert [task for task in tasks if f"`{task}`" not in section[1]] == []


def test_tests_that_documents_cite_exist() -> None:
    for path in DOCUMENTS:
        for cited in re.findall(r"`(tests/[\w/.-]+)`", path.read_text()):
            assert (ROOT / cited).exists(), f"{name_of(path)}: {cited}"


def test_documents_that_are_cited_by_their_path_exist() -> None:
    folders = ("duckling_provider", "benchmarks", "compose", "dags", "demo", "tests", ".ci")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in [*files, *DOCUMENTS, ROOT / "Makefile", ROOT / "docker-compose.yaml"]:
        if path.suffix in {"", ".md", ".py", ".yaml", ".sh"}:
            for cited in re.findall(r"(?<![\w/.-])(docs/[\w/-]+\.[a-z]+)", path.read_text()):
                assert (ROOT / cited).exists(), f"{name_of(path)}: {cited}"
