from __future__ import annotations

import ast
from pathlib import Path

import pytest

import duckling_provider
from duckling_provider.base import errors
from duckling_provider.base.errors import DucklingError, FileSystemError, RequestError, sentences

PACKAGE = Path(duckling_provider.__file__).parent
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DucklingError)]


def test_no_module_raises_the_base_class():
    """Its class is what the API's status and a caller's `except` go by."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "DucklingError":
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
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
