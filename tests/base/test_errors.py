from __future__ import annotations

import ast
from pathlib import Path

import pytest

import duckling_provider
from duckling_provider.base import errors
from duckling_provider.base.errors import DucklingError, FileSystemError, RequestError, sentences

PACKAGE = Path(duckling_provider.__file__).parent
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DucklingError)]


def test_no_module_makes_an_error_of_the_base_class():
    """Its class is what the API's status and a caller's `except` go by. Also where it is raised elsewhere than made."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "DucklingError"
    ]
    assert found == []


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_says_what_it_means(kind):
    assert kind.__doc__


def test_a_record_tells_the_same_as_the_error():
    error = FileSystemError("No space left on device: /x", errno=28, subject="shop", hint="Make room.")
    record = error.as_record()
    assert record == {
        "kind": "FileSystemError",
        "what": "shop: No space left on device: /x",
        "hint": "Make room.",
        "retryable": False,
    }
    assert sentences(record) == str(error)
    assert sentences(RequestError("there is no such field").as_record()) == "there is no such field."
