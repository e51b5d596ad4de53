"""The catalogue of messages in the runbook: it quotes the code, and no message that errors are made with is missing."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "duckling_provider"
RUNBOOK = ROOT / "docs" / "operate" / "runbook.md"
GAP = "\0"  #: what varies in a message

#: Not messages that a user could meet: two mistakes in the use of a function, and a beginning whose ends are listed.
LEFT_OUT = {"is not locked", "a transaction of the source is not complete", f"the Airflow connection {GAP} {GAP}"}


@cache
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
def trees() -> tuple[list[ast.AST], ...]:
    """The nodes of each module of the package, itself first: walking through them costs as much as parsing does."""
    return tuple(list(ast.walk(ast.parse(path.read_text()))) for path in sorted(PACKAGE.rglob("*.py")))


@cache
def every_text() -> tuple[str, ...]:
    """Of the whole package, docstrings apart; and each line of the page's templates."""
    texts = set()
    for nodes in trees():
        docstrings = {
            id(node.body[0].value)
            for node in nodes
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in nodes:
            if isinstance(node, (ast.Constant, ast.JoinedStr, ast.BinOp)) and id(node) not in docstrings:
                texts.add(template(node))
    for page in PACKAGE.rglob("*.html"):
        texts.update(page.read_text().splitlines())
    return tuple(text for text in texts if text.strip(GAP))


@cache
def error_classes() -> set[str]:
    """Names of the family: whatever descends from `DucklingError`, and the API's own error."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for nodes in trees()
        for node in nodes
        if isinstance(node, ast.ClassDef)
    }
    family = {"DucklingError"}
    while more := {name for name, parents in bases.items() if parents & family} - family:
        family |= more
    return (family | {"ApiError"}) - {"DucklingError"}


def values_of(name: str, function: ast.AST) -> Iterator[ast.expr]:
    """What `function` assigns to `name`, also as one of several names."""
    for statement in ast.walk(function):
        if not isinstance(statement, ast.Assign):
            continue
        for target in statement.targets:
            pairs = [(target, statement.value)]
            if isinstance(target, ast.Tuple) and isinstance(statement.value, ast.Tuple):
                pairs = list(zip(target.elts, statement.value.elts, strict=False))
            yield from (value for part, value in pairs if isinstance(part, ast.Name) and part.id == name)


def variants(node: ast.expr, function: ast.AST, depth: int = 3) -> Iterator[str]:
    """What `node` may be: both branches of a choice, and all values that `function` gives to a name."""
    if isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    elif isinstance(node, ast.BoolOp):
        parts = node.values
    elif isinstance(node, ast.Name):
        parts = list(values_of(node.id, function))
    else:
        yield template(node)
        return
    for part in parts if depth else ():
        yield from variants(part, function, depth - 1)


def is_maker(call: ast.Call) -> bool:
    """Whether it makes an error of the family, or hands a text to a function that does, or that warns of an entry."""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id == "fault" or function.id in error_classes()
    if isinstance(function, ast.Attribute) and function.attr in {"error", "fault", "warn", "_refused"}:
        return ast.unparse(function.value) != "log"
    return False


@cache
def causes() -> dict[str, set[str]]:
    """By class of error: the causes as the code has them. Texts of one word are names of fields."""
    found: dict[str, set[str]] = {}
    for nodes in trees():
        functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        # An inner function comes after the one around it.
        around = {id(node): function for function in functions for node in ast.walk(function)}
        for call in nodes:
            if not isinstance(call, ast.Call) or not is_maker(call):
                continue
            name = ast.unparse(call.func).rpartition(".")[2]
            # After a status of HTTP, or after the name of a field.
            second = name == "ApiError" or (name in {"error", "fault", "warn"} and isinstance(call.func, ast.Attribute))
            for argument in call.args[1:2] if second else call.args[:1]:
                for text in variants(argument, around.get(id(call), nodes[0])):
                    if " " in text.strip(GAP + " :,") and text not in LEFT_OUT:
                        found.setdefault(name, set()).add(text)
    return found


def says(message: str, text: str) -> bool:
    """Whether `message` is what `text` may become, or a part of it."""
    at = 0
    for part in filter(None, map(str.strip, message.split("…"))):
        at = text.find(part, at) + len(part)
        if at < len(part):
            return False
    return True


def names(message: str, text: str) -> bool:
    """Whether `message` says enough of `text` to be found by it: its beginning, or a quarter of it."""
    said, whole = message.replace("…", ""), text.replace(GAP, "")
    begins = text.lstrip(GAP + " ").startswith(message.partition("…")[0].strip() or GAP)
    return says(message, text) and (begins or len(said) * 4 >= len(whole))


def test_the_catalogue_is_not_empty_and_names_no_message_twice() -> None:
    messages = quoted()
    assert len(messages) >= 60
    assert sorted(messages) == sorted(set(messages))


def test_each_message_of_the_catalogue_is_one_of_the_code() -> None:
    assert [message for message in quoted() if not any(says(message, text) for text in every_text())] == []


def test_the_whole_family_of_errors_was_searched() -> None:
    named = {node.name for nodes in trees() for node in nodes if isinstance(node, ast.ClassDef)}
    assert {name for name in error_classes() if name not in named} == set()
    # What a server lacks is in docs/internals/replication.md.
    assert error_classes() - set(causes()) == {"PreflightError"}


def test_each_message_of_the_code_is_in_the_catalogue() -> None:
    messages = quoted()
    missing = {
        (name, text.replace(GAP, "…"))
        for name, texts in causes().items()
        for text in texts
        if not any(says(message, text) for message in messages)
    }
    assert missing == set()


def test_a_message_that_the_code_does_not_have_is_found_out() -> None:
    assert [text for text in every_text() if says("the server has purged what follows it", text)] == []
    assert says("held by …", f"held by {GAP}")
    assert not says("held by …", f"it is {GAP}")
    assert names("held by …", f"held by {GAP} since {GAP}")
    assert not names("… failed…", f"the write to {GAP} failed because the disk is full")
