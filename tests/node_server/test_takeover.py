"""An installation of the Node server, taken over by the command: what is found, done, and left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pytest
from fixtures.command_line import run_here

from duckling_provider.replication.model.ledger import owner_of

pytestmark = [pytest.mark.mysql, pytest.mark.server]

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors" / "client-aes256"
VECTOR = "backup-2025-03-01T14-32-11-482Z.db"
KEY = json.loads((VECTORS / "key.json").read_text())["encryptionKey"]


def run(*arguments, **environment):
    """``duckling …``, with the folders that `environment` names only; it never shows a secret."""
    done = run_here(*arguments, environ={"COLUMNS": "200", "DATA_PATH": None, "BACKUP_PATH": None} | environment)
    for text in (done.out, done.err):
        assert "Traceback" not in text
        assert KEY not in text
    return done


def document(*arguments, **environment):
    done = run(*arguments, "--json", **environment)
    return done.code, json.loads(done.out)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@dataclass
class Node:
    """A Node server's folder, with the data folder in it."""

    home: Path
    entries: list = field(default_factory=list)

    @property
    def data(self):
        return self.home / "data"

    def entry(self, database_id="shop", **fields):
        entry = {"id": database_id, "name": database_id.title(), "duckdbPath": f"data/{database_id}.db", **fields}
        self.entries.append(entry)
        path = self.data / "databases.json"
        path.write_text(json.dumps(self.entries))
        path.chmod(0o600)
        return entry

    def replica(self, database_id="shop", *, file="mysql-bin.000007", offset=1234, statements=()):
        path = self.data / f"{database_id}.db"
        with duckdb.connect(str(path)) as connection:
            connection.execute("CREATE TABLE items AS SELECT i AS id, 'item ' || i AS name FROM range(50000) t(i)")
            connection.execute("CREATE TABLE sync_log (x INTEGER)")
            connection.execute(
                "CREATE TABLE cdc_binlog_position (database_id VARCHAR PRIMARY KEY, filename VARCHAR NOT NULL, "
                "position BIGINT NOT NULL, updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP)"
            )
            connection.execute("INSERT INTO cdc_binlog_position VALUES (?, ?, ?, now())", [database_id, file, offset])
            for statement in statements:
                connection.execute(statement)
        return path

    def backup(self, stamp, database_id="shop", content=None):
        folder = self.data / "backups" / f"backup-{database_id}-{stamp}"
        folder.mkdir(parents=True)
        path = folder / f"duckling-{database_id}.db"
        path.write_bytes((self.data / f"{database_id}.db").read_bytes() if content is None else content)
        return path


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path / "node")
    made.data.mkdir(parents=True)
    return made


def rows(path):
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute("SELECT count(*), sum(id) FROM items").fetchall()


def test_without_yes_everything_is_shown_and_nothing_changed(node, tmp_path):
    node.entry()
    node.entry("crm")
    node.replica()
    node.backup("2025-03-01T14-32-11-482Z")
    node.backup("1740839531482")
    node.backup("2025-03-02T00-00-00Z", "gone", content=b"x")
    before = contents(tmp_path)
    shown = run("adopt", node.home, DATA_PATH=str(tmp_path / "ours" / "data"))
    assert shown.code == 0, shown.err
    for expected in (
        "2 entries",
        "the server's",
        "mysql-bin.000007:1234",
        "crm: no replica at",
        "backup-gone-2025-03-02T00-00-00Z: a local backup of a database that is in no entry",
        f"write {tmp_path / 'ours' / 'data' / 'databases.json'}: shop, crm",
        "shop: check 2 local backups",
        "Nothing was done. To do it, add --yes.",
    ):
        assert expected in shown.out
    assert contents(tmp_path) == before
    assert not (tmp_path / "ours").exists()


def test_entries_backups_and_replicas_come_over_once_and_stay_where_they_are(node, tmp_path, mariadb, database):
    """The whole way: entries, a backup that lists, verifies and restores, a replica that syncs on; then again."""
    mariadb.execute(
        [
            "CREATE TABLE items (id INT PRIMARY KEY, name VARCHAR(40))",
            "INSERT INTO items VALUES (1, 'one'), (2, 'two')",
        ],
        database,
    )
    file, offset = mariadb.execute("SHOW MASTER STATUS")[0][:2]
    entry = node.entry(mysqlConnectionString=mariadb.url(database), createdAt="2024-01-01T00:00:00.000Z")
    replica = node.replica(
        file=file,
        offset=offset,
        statements=[
            "DROP TABLE items",
            "CREATE TABLE items (id INTEGER, name VARCHAR)",
            "INSERT INTO items VALUES (1, 'one'), (2, 'two')",
        ],
    )
    old = [node.backup("2025-03-01T14-32-11-482Z"), node.backup("2025-03-02T14-32-11-482Z")]
    originals = {path: path.read_bytes() for path in (*old, node.data / "databases.json")}
    ours = {"DATA_PATH": str(tmp_path / "ours" / "data"), "BACKUP_RETENTION_DAYS": "36500"}
    done = run("adopt", node.data, "--yes", **ours)
    assert done.code == 0, done.out + done.err
    assert "FAILED" not in done.out
    assert "shop: replica: ours now, 1 tables" in done.out

    assert {path: path.read_bytes() for path in originals} == originals
    written = tmp_path / "ours" / "data" / "databases.json"
    assert json.loads(written.read_text()) == [entry | {"duckdbPath": str(replica)}]
    assert written.stat().st_mode & 0o777 == 0o600
    imported = tmp_path / "ours" / "data" / "backups" / "shop"
    assert {path.name for path in imported.glob("*.db")} == {
        "backup-2025-03-01T14-32-11-482Z.db",
        "backup-2025-03-02T14-32-11-482Z.db",
    }
    assert owner_of(replica) == "ours"

    code, listed = document("list", "shop", **ours)
    assert (code, [row["createdAt"] for row in listed["local"]]) == (
        0,
        ["2025-03-02T14:32:11.482Z", "2025-03-01T14:32:11.482Z"],
    )
    assert run("verify", "shop", "backup-2025-03-01T14-32-11-482Z.db", **ours).code == 0
    copy = tmp_path / "copy.db"
    assert run("restore", "shop", "backup-2025-03-01T14-32-11-482Z.db", "--to", copy, **ours).code == 0
    assert rows(copy) == [(2, 3)]
    mariadb.execute("INSERT INTO items VALUES (3, 'three')", database)
    assert run("sync", "shop", **ours).code == 0
    assert rows(replica) == [(3, 6)]

    before = contents(tmp_path / "ours")
    again = run("adopt", node.data, "--yes", **ours)
    assert again.code == 0, again.err
    assert contents(tmp_path / "ours") == before
    assert "Nothing is left to take over." in run("adopt", node.data, **ours).out


def test_without_a_data_path_it_is_taken_over_where_it_is(node, tmp_path):
    node.entry()
    node.replica()
    node.backup("2025-03-01T14-32-11-482Z")
    before = contents(tmp_path)
    done = run("adopt", node.home, "--yes")
    assert done.code == 0, done.out + done.err
    assert f"export DATA_PATH={node.data}" in done.out
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "node/data/backups/shop/backup-2025-03-01T14-32-11-482Z.db",
        "node/data/backups/shop/backup-2025-03-01T14-32-11-482Z.json",
        "node/data/backups/shop/segments/backup-2025-03-01T14-32-11-482Z.json",
    }
    # Without a MySQL there is nothing that a sync could go on with.
    assert owner_of(node.data / "shop.db") == "duckling-server"
    assert document("verify", "shop", "latest", DATA_PATH=str(node.data))[0] == 0


def test_what_is_ours_already_is_never_overwritten(node, tmp_path):
    node.entry()
    node.entry("crm", name="Their CRM")
    ours = tmp_path / "ours" / "data"
    ours.mkdir(parents=True)
    mine = [{"id": "crm", "name": "Our CRM", "duckdbPath": "data/crm.db"}]
    (ours / "databases.json").write_text(json.dumps(mine))
    node.replica()
    node.replica("crm")
    node.backup("2025-03-01T14-32-11-482Z", "crm")
    code, told = document("adopt", node.home, "--yes", DATA_PATH=str(ours))
    assert code == 0
    assert [row["state"] for row in told["databases"]] == ["to be added", "differs from ours, which stays"]
    assert any("crm: our databases.json has another entry" in problem for problem in told["problems"])
    entries = json.loads((ours / "databases.json").read_text())
    assert [entry["name"] for entry in entries] == ["Our CRM", "Shop"]
    (kept,) = ours.glob("databases.json.before-*")
    assert json.loads(kept.read_text()) == mine
    assert kept.stat().st_mode & 0o777 == 0o600
    assert not (ours / "backups" / "crm").exists()


def test_a_damaged_local_backup_is_told_and_stays_out(node):
    node.entry()
    content = bytearray(node.replica().read_bytes())
    node.backup("2025-03-01T00-00-00-000Z")
    for offset in range(3 * 4096 + 1000, len(content), 262144):
        content[offset] ^= 1
    bad = node.backup("2025-03-02T00-00-00-000Z", content=bytes(content))
    node.backup("2025-03-03T00-00-00-000Z", content=b"no DuckDB file at all")
    code, told = document("adopt", node.home, "--yes")
    assert code == 1
    assert [bool(step["error"]) for step in told["steps"]] == [False, True, True]
    assert "wrong checksum" in told["error"]
    assert bad.exists()
    names = {path.name for path in (node.data / "backups" / "shop").iterdir()} - {"segments"}
    assert names == {"backup-2025-03-01T00-00-00-000Z.db", "backup-2025-03-01T00-00-00-000Z.json"}


def test_a_write_ahead_log_of_a_backup_is_folded_into_a_copy(node):
    node.entry()
    program = (
        "import duckdb, os, sys\n"
        "c = duckdb.connect(sys.argv[1])\n"
        "c.execute(\"SET checkpoint_threshold = '1TB'\")\n"
        "c.execute('CREATE TABLE items AS SELECT i AS id FROM range(1000) t(i)')\n"
        "c.execute('CHECKPOINT')\n"
        "c.execute('INSERT INTO items VALUES (5000)')\n"
        "os._exit(0)\n"
    )
    folder = node.data / "backups" / "backup-shop-2025-03-01T00-00-00-000Z"
    folder.mkdir(parents=True)
    path = folder / "duckling-shop.db"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    assert path.with_name("duckling-shop.db.wal").stat().st_size > 0
    before = contents(folder)
    assert run("adopt", node.home, "--yes").code == 0
    assert contents(folder) == before
    imported = node.data / "backups" / "shop" / "backup-2025-03-01T00-00-00-000Z.db"
    assert rows(imported) == [(1001, 499500 + 5000)]
    assert {p.name for p in imported.parent.iterdir()} == {
        imported.name,
        imported.with_suffix(".json").name,
        "segments",
    }


def test_a_server_that_still_runs_stops_everything_and_is_named(node, tmp_path):
    node.entry()
    node.replica()
    node.backup("2025-03-01T14-32-11-482Z")
    program = "import duckdb, sys, time; c = duckdb.connect(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    server = subprocess.Popen(
        [sys.executable, "-c", program, str(node.data / "shop.db")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout.readline() == "open\n"
        before = contents(tmp_path)
        shown = run("adopt", node.home)
        assert shown.code == 0
        assert "shop: the server is still running: the replica is open in" in shown.out
        refused = run("adopt", node.home, "--yes")
        assert refused.code == 1
        assert f"(PID {server.pid})" in refused.err or f"PID {server.pid}" in refused.err
        assert "nothing was done" in refused.err
        assert contents(tmp_path) == before
        # One whose replica stays with that server does not mind.
        node.entries[0]["writer"] = "duckling-server"
        node.entries.append({"id": "x", "name": "X", "duckdbPath": "data/x.db"})
        (node.data / "databases.json").write_text(json.dumps(node.entries))
        assert run("adopt", node.home, "--yes").code == 0
    finally:
        server.kill()
        server.wait()


def test_its_objects_in_the_store_list_verify_and_restore_as_they_are(node, s3_server):
    bucket = s3_server.new_bucket()
    client = s3_server.client()
    for name in (VECTOR, f"{VECTOR}.mac"):
        client.put_object(Bucket=bucket, Key=f"shop/{name}", Body=(VECTORS / name).read_bytes())
    lone = "shop/backup-2025-03-02T14-32-11-482Z.db"
    client.put_object(Bucket=bucket, Key=lone, Body=(VECTORS / VECTOR).read_bytes())
    node.entry(s3=s3_server.s3(bucket, encryption="client-aes256", encryptionKey=KEY))
    code, told = document("adopt", node.home)
    assert code == 0
    (found,) = told["databases"]
    assert [(row["key"], row["restorable"]) for row in found["s3"]] == [(f"shop/{VECTOR}", True), (lone, False)]
    assert "client-aes256" in run("adopt", node.home).out
    assert run("adopt", node.home, "--yes").code == 0
    ours = {"DATA_PATH": str(node.data)}
    assert run("verify", "shop", "latest", **ours).code == 0
    assert run("restore", "shop", "latest", **ours).code == 0
    assert (node.data / "shop.db").read_bytes() == (VECTORS / "replica.db").read_bytes()


def test_a_store_that_is_away_is_a_problem_and_no_failure(node):
    s3 = {"enabled": True, "bucket": "b", "region": "auto", "accessKeyId": "a", "secretAccessKey": "very-secret-key"}
    node.entry(s3=s3 | {"endpoint": "http://127.0.0.1:9", "forcePathStyle": True})
    shown = run("adopt", node.home)
    assert shown.code == 0
    assert "PROBLEM  shop: " in shown.out
    assert "very-secret-key" not in shown.out


def test_a_folder_without_an_installation_says_what_is_wanted(tmp_path):
    refused = run("adopt", tmp_path)
    assert refused.code == 1
    assert "no databases.json there" in refused.err
    assert "data folder of the Node server" in refused.err


def test_an_id_means_the_entry_even_where_a_folder_has_that_name(installation, monkeypatch, tmp_path):
    installation.write(installation.entry(host="elsewhere"))
    (tmp_path / "production").mkdir()
    monkeypatch.chdir(tmp_path)
    refused = run("adopt", "production", DATA_PATH=str(installation.data_path))
    assert 'on host "elsewhere"' in refused.err
    assert "go with a path" in run("adopt", "production", "--yes", DATA_PATH=str(installation.data_path)).err


def test_files_are_linked_not_copied_where_that_is_possible(node):
    node.entry()
    node.replica()
    path = node.backup("2025-03-01T14-32-11-482Z")
    assert run("adopt", node.home, "--yes").code == 0
    imported = node.data / "backups" / "shop" / "backup-2025-03-01T14-32-11-482Z.db"
    assert imported.stat().st_ino == path.stat().st_ino or _has_reflinks(path)
    # The clean-up deletes our name of it; the server's stays.
    assert run("delete", "shop", imported.name, "--yes", "--local", DATA_PATH=str(node.data)).code == 0
    assert path.exists()


def _has_reflinks(path):
    copy = path.with_name("reflink")
    done = subprocess.run(["cp", "--reflink=always", path, copy], capture_output=True, check=False)
    return done.code == 0
