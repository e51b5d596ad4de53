"""The catalogue of messages in the runbook: it quotes the code, and no class of errors is missing from it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "duckling_provider"
RUNBOOK = ROOT / "docs" / "operate" / "runbook.md"
GAP = "\0"  #: what varies in a message


def quoted() -> list[str]:
    """The messages of the catalogue: code in the first column of its tables, `…` for what varies."""
    catalogue = RUNBOOK.read_text().partition("\n## Messages\n")[2]
    messages: list[str] = []
    for row in re.findall(r"^\| (`.+?) \|", catalogue, re.MULTILINE):
        messages += re.findall(r"`([^`]+)`", row)
    return messages


def template(node: ast.expr) -> str:
    """The fixed parts of an expression that makes a text, with gaps between them."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else GAP
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return GAP


@cache
def trees() -> tuple[ast.Module, ...]:
    return tuple(ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py")))


@cache
def every_text() -> tuple[str, ...]:
    """Of the whole package, docstrings apart."""
    texts = set()
    for tree in trees():
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)) and id(node) not in docstrings:
                texts.add(template(node))
    return tuple(text for text in texts if text.strip(GAP))


def error_classes() -> set[str]:
    tree = ast.parse((PACKAGE / "base" / "errors.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Error")}


def causes() -> dict[str, set[str]]:
    """Of each class of base/errors.py that is made anywhere: the templates of its causes."""
    known, found = error_classes(), {}
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known and node.args:
                parts = [part for part in ast.walk(node.args[0]) if isinstance(part, ast.expr)]
                found.setdefault(node.func.id, set()).update(map(template, parts))
    return found


def says(message: str, text: str) -> bool:
    """Whether `message` is what `text` may become, or a part of it."""
    parts = [re.escape(part.strip()) for part in message.split("…") if part.strip()]
    return re.search(".*".join(parts), text, re.DOTALL) is not None


def test_the_catalogue_is_not_empty_and_names_no_message_twice() -> None:
    messages = quoted()
    assert len(messages) >= 60
    assert sorted(messages) == sorted(set(messages))


@pytest.mark.parametrize("message", quoted())
def test_each_message_of_the_catalogue_is_one_of_the_code(message: str) -> None:
    assert [text for text in every_text() if says(message, text)] != []


@pytest.mark.parametrize("name", sorted(causes()))
def test_each_class_of_errors_has_a_message_in_the_catalogue(name: str) -> None:
    templates = [text for text in causes()[name] if text.strip(GAP)]
    assert [message for message in quoted() if any(says(message, text) for text in templates)] != []


def test_a_message_that_the_code_does_not_have_is_found_out() -> None:
    assert [text for text in every_text() if says("the server has purged what follows it", text)] == []
    assert says("held by …", f"held by {GAP}")
    assert not says("held by …", f"it is {GAP}")
