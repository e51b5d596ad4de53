"""The documents' commands are run as they stand: on a real MariaDB and a real S3 server, with another id and other
addresses, and without Airflow.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pytest
from fixtures.command_line import Outcome, run_here

from duckling_provider.config.keys import EncryptionKey
from duckling_provider.formats import segments
from duckling_provider.formats.segments import SegmentCipher, SegmentKeys, SegmentTags
from duckling_provider.formats.trailer import Footer, encode_trailer, mac_of

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
VECTOR = ROOT / "tests" / "vectors" / "client-aes256"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def commands(path: Path) -> list[str]:
    """Each command after a prompt, without its comment."""
    lines = re.findall(r"^\$ (duckling .+)$", "".join(blocks(path, "console")), re.MULTILINE)
    return [shlex.join(shlex.split(line, comments=True)) for line in lines]


class Shell:
    """Runs lines of the documents in `folder`; what they name in ``/tmp`` is in `folder`, too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        self.environ = {**inherited, "DATA_PATH": str(folder / "data")}

    def __call__(self, line: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["/bin/bash", "-c", line.replace("/tmp/", f"{self.folder}/")],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        print(f"$ {line}\n{done.stdout}{done.stderr}")  # pytest shows it when a test fails
        return done

    def duckling(self, line: str) -> Outcome:
        """A line that is one `duckling` command, in this process."""
        name, *arguments = shlex.split(line.replace("/tmp/", f"{self.folder}/"))
        assert name == "duckling"
        elsewhere = dict.fromkeys((name for name in os.environ if name.startswith("AIRFLOW_")), None)
        done = run_here(*arguments, environ=elsewhere | {"DATA_PATH": self.environ["DATA_PATH"]})
        print(f"$ {line}\n{done.out}{done.err}")
        return done


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    (tmp_path / "data").mkdir()
    return Shell(tmp_path)


@pytest.fixture
def ready(shell: Shell, s3_server: Any, mariadb: Any, database: str) -> Shell:
    """The README's databases.json, and a MySQL user as replication.md makes it."""
    mariadb.execute(["CREATE TABLE orders (id INT PRIMARY KEY)", "INSERT INTO orders VALUES (1), (2), (3)"], database)
    user, password = f"docs-{secrets.token_hex(4)}", secrets.token_hex(12)
    grants = blocks(DOCS / "internals" / "replication.md", "sql")[0]
    for old, new in {"shop.*": f"`{database}`.*", "'duckling'": f"'{user}'", "…": password}.items():
        assert old in grants
        grants = grants.replace(old, new)
    mariadb.execute([statement for statement in grants.split(";") if statement.strip()])

    [entry] = json.loads(blocks(ROOT / "README.md", "json")[0])
    assert urlsplit(entry["mysqlConnectionString"]).path == "/shop"
    entry["mysqlConnectionString"] = f"mysql://{user}:{password}@{mariadb.host}:{mariadb.port}/{database}"
    entry["s3"] |= s3_server.s3(s3_server.new_bucket()) | {
        "encryptionKey": shell.duckling("duckling keygen").out.strip()
    }
    path = shell.folder / "data" / "databases.json"
    path.write_text(json.dumps([entry]))
    path.chmod(0o600)
    return shell


def rows(path: Path) -> list[Any]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute("SELECT id FROM orders ORDER BY id").fetchall()


@pytest.mark.mysql
@pytest.mark.server
def test_the_commands_of_readme_tour_and_install_do_what_they_promise(ready: Shell) -> None:
    run: list[str] = []
    for document in (ROOT / "README.md", DOCS / "start" / "tour.md", DOCS / "start" / "install.md"):
        for command in commands(document):
            line = re.sub(r"\bshop\b(?!-)", "production", command)
            known = {old.partition(" --to ")[0] for old in run}
            # The README says some of them twice, on purpose: once to try, once on the day of a restore.
            if document.name == "README.md" or line.partition(" --to ")[0] not in known:
                assert ready.duckling(line).code == 0, line
                run.append(line)
    assert len(run) >= 10
    expected = [(1,), (2,), (3,)]
    assert rows(ready.folder / "data" / "production.db") == expected
    assert rows(ready.folder / "copy.db") == expected
    with duckdb.connect(str(ready.folder / "data" / "production.db"), read_only=True) as connection:
        for statement in blocks(DOCS / "internals" / "replication.md", "sql")[1].splitlines():
            connection.execute(statement).fetchall()


@pytest.mark.mysql
@pytest.mark.server
def test_the_json_in_the_reference_has_the_fields_of_the_real_one(ready: Shell) -> None:
    assert ready.duckling("duckling sync production").code == 0
    [block] = [block for block in blocks(DOCS / "reference" / "command-line.md", "console") if "--json" in block]
    shown = re.findall(r"^\$ (duckling [^\n]+)\n(\{\n.*?^\})", block, re.DOTALL | re.MULTILINE)
    assert len(shown) == 3
    for line, document in shown:
        done, expected = ready.duckling(line), json.loads(document)
        real = json.loads(done.out)
        assert list(real) == list(expected), line
        assert (real["success"], done.code == 0) == (expected["success"], expected["success"]), line


@pytest.mark.slow
def test_a_backup_is_read_by_openssl_alone_as_the_format_page_says(shell: Shell) -> None:
    [stored] = VECTOR.glob("*.db.mac")
    shutil.copy(stored.with_suffix(""), shell.folder / "backup.db")
    key = json.loads((VECTOR / "key.json").read_text())
    shell.environ["KEY"] = key["encryptionKey"] if isinstance(key, dict) else key
    block, _ = (block for block in blocks(DOCS / "internals" / "format.md", "console") if "openssl" in block)
    done = shell("set -e\n" + re.sub(r"^[$>] ", "", block, flags=re.MULTILINE))
    assert done.returncode == 0
    assert done.stdout.split()[-1] == stored.read_text().strip()
    assert (shell.folder / "replica.db").read_bytes() == (VECTOR / "replica.db").read_bytes()


@pytest.fixture
def format_2(tmp_path: Path) -> tuple[Path, str, bytes]:
    """An object of format 2 of two segments and its ``.mac`` beside it, the key in hex, and the plain text."""
    key, plain = EncryptionKey(bytes(range(32))), random.Random(2).randbytes(segments.SEGMENT_BYTES + 12_345)
    footer = Footer("größe", "2025-03-01T14-32-11-482Z", len(plain), bytes(range(16)), key.fingerprint)
    keys = SegmentKeys(key)
    tags = SegmentTags(footer.segments(keys))
    tags.update(plain)
    ciphertext, index = bytearray(plain), tags.finish()
    SegmentCipher(keys, index).stream().update_into(ciphertext, ciphertext)
    trailer = encode_trailer(keys, footer, index)
    stored = tmp_path / "backup.db"
    stored.write_bytes(bytes(ciphertext) + trailer)
    stored.with_name("backup.db.mac").write_text(mac_of(trailer))
    return stored, key.hex(), plain


@pytest.mark.slow
def test_the_program_on_the_format_page_decrypts_an_object_of_format_2_and_refuses_a_damaged_one(format_2):
    stored, key, plain = format_2
    [code] = [block for block in blocks(DOCS / "internals" / "format.md", "python") if "SEGMENT" in block]
    program = stored.with_name("decrypt.py")
    program.write_text(code)
    assert "duckling_provider" not in code

    def run(target: str, with_key: str = key) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, program, stored, with_key, stored.with_name(target)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("replica.db")
    assert done.returncode == 0, done.stderr
    assert stored.with_name("replica.db").read_bytes() == plain
    assert done.stdout.split()[-1] == stored.with_name("backup.db.mac").read_text()
    assert "another key" in run("other.db", "00" * 32).stderr
    with stored.open("r+b") as file:
        file.seek(segments.SEGMENT_BYTES)
        file.write(bytes(16))
    assert "segment 1 is damaged" in run("damaged.db").stderr


@pytest.mark.slow
def test_an_object_of_format_2_is_read_by_openssl_alone_as_the_format_page_says(format_2):
    stored, key, plain = format_2
    _, block = (block for block in blocks(DOCS / "internals" / "format.md", "console") if "openssl" in block)
    script = "set -e\n" + re.sub(r"^[$>] ", "", block, flags=re.MULTILINE)
    environ = {**os.environ, "KEY": key, "LC_ALL": "C.UTF-8"}
    command = ["/bin/bash", "-c", script]
    done = subprocess.run(command, cwd=stored.parent, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    footer, code, *pairs = done.stdout.splitlines()
    assert json.loads(footer)["database"] == "größe"
    assert code == stored.with_name("backup.db.mac").read_text()
    assert len(pairs) == 4
    assert pairs[0::2] == pairs[1::2]
    assert stored.with_name("replica.db").read_bytes() == plain


def test_the_metrics_in_the_documents_are_those_of_the_code() -> None:
    name = r"\b(?:duckling_)?((?:backup|sync|replica|databases)_[a-z_]+)"
    table = (DOCS / "operate" / "monitoring.md").read_text()
    rules = "".join(block for block in blocks(DOCS / "operate" / "monitoring.md", "yaml") if "expr:" in block)
    documented = set(re.findall(rf"`{name}`", table)) | set(re.findall(rf"{name}(?= [=<>])", rules))
    code = (ROOT / "duckling_provider" / "web" / "api" / "monitoring.py").read_text()
    assert documented == set(re.findall(rf'"{name}"', code))
