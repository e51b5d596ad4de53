import duckdb
import pytest

from duckling_provider.base.errors import BusyError, NotFoundError, ReplicaError
from duckling_provider.replication.model.ledger import Ledger, TableState, adopt, owner_of
from duckling_provider.replication.model.tables import Column, Position, Table

ITEMS = Table(
    'it`em"s',
    (Column("id", "int", "int(11)", nullable=False), Column("näme", "varchar", "varchar(20)", charset="utf8mb4")),
    ("id",),
)


@pytest.fixture
def connection():
    with duckdb.connect() as connection:
        yield connection


def node_replica(path, *, item_type="INTEGER", open_=False):
    connection = duckdb.connect(str(path))
    connection.execute(
        "CREATE TABLE cdc_binlog_position (database_id VARCHAR PRIMARY KEY, filename VARCHAR, position BIGINT, "
        "updated_at TIMESTAMP)"
    )
    connection.execute("INSERT INTO cdc_binlog_position VALUES ('shop', 'mysql-bin.000007', 1234, now()::TIMESTAMP)")
    connection.execute("CREATE TABLE sync_log (x INTEGER)")
    connection.execute(f'CREATE TABLE items (id {item_type}, "Name" VARCHAR)')
    if open_:
        return connection
    connection.close()
    return None


def items(name="Name"):
    return Table("items", (Column("id", "int", "int(11)"), Column(name, "varchar", "varchar(9)")), ("id",))


def test_position_is_one_row_that_changes(connection):
    ledger = Ledger.create(connection)
    assert ledger.position() is None
    for offset in (4, 2**40):
        ledger.save_position(Position("bin.000001", offset, "0-1-5", "server"))
    assert ledger.position() == Position("bin.000001", 2**40, "0-1-5", "server")
    assert connection.execute("SELECT count(*) FROM _duckling.position").fetchall() == [(1,)]


def test_position_and_data_are_one_transaction(connection):
    ledger = Ledger.create(connection)
    ledger.save_position(Position("bin.000001", 4))
    connection.begin()
    connection.execute("CREATE TABLE t AS SELECT 1")
    ledger.save_position(Position("bin.000001", 5))
    connection.rollback()
    assert ledger.position() == Position("bin.000001", 4)


def test_tables_come_back_as_they_were_saved(connection):
    ledger = Ledger.create(connection)
    state = TableState(ITEMS, "copying", "why", Position("bin.000001", 7, "g", "s"), 5)
    ledger.save_table(state)
    ledger.save_table(state)
    assert ledger.tables() == {ITEMS.name: state}
    ledger.mark_recopy(ITEMS.name, "because")
    marked = ledger.tables()[ITEMS.name]
    assert (marked.state, marked.note, marked.table) == ("recopy", "because", ITEMS)
    ledger.mark_recopy("never seen", "because")
    assert ledger.tables()["never seen"].table == Table("never seen", ())
    ledger.forget_table(ITEMS.name)
    assert set(ledger.tables()) == {"never seen"}
    assert [(kind, note) for _, kind, note in ledger.history()][-1] == ("recopy", f"{ITEMS.name}: because")


def test_counters_add_up(connection):
    ledger = Ledger.create(connection)
    ledger.count({("t", "zero dates"): 3})
    ledger.count({("t", "zero dates"): 4, ("u", "zero dates"): 1})
    assert ledger.counters() == {("t", "zero dates"): 7, ("u", "zero dates"): 1}


def test_history_is_bounded_and_newest_first(connection):
    ledger = Ledger.create(connection)
    for number in range(1200):
        ledger.record("test", str(number))
    assert [note for _, _, note in ledger.history(3)] == ["1199", "1198", "1197"]
    assert connection.execute("SELECT count(*) FROM _duckling.history").fetchall()[0][0] <= 1100


def test_a_ledger_of_an_attached_file_leaves_the_own_one_alone(connection, tmp_path):
    connection.execute(f"ATTACH '{tmp_path / 'r.db'}' AS r (STORAGE_VERSION 'v1.5.0')")
    Ledger.create(connection, catalog="r").save_position(Position("bin.000001", 4))
    assert Ledger.open(connection, catalog="r").position() == Position("bin.000001", 4)
    with pytest.raises(ReplicaError, match="adopt"):
        Ledger.open(connection)


def test_a_newer_ledger_is_refused(connection):
    Ledger.create(connection)
    connection.execute("UPDATE _duckling.about SET version = 99")
    with pytest.raises(ReplicaError, match="99"):
        Ledger.open(connection)


def test_owners(tmp_path):
    paths = {name: tmp_path / name for name in ("ours", "duckling-server", "foreign", "absent")}
    with duckdb.connect(str(paths["ours"])) as connection:
        Ledger.create(connection)
    node_replica(paths["duckling-server"])
    with duckdb.connect(str(paths["foreign"])) as connection:
        connection.execute("CREATE TABLE t (a INTEGER)")
    assert {name: owner_of(path) for name, path in paths.items()} == {name: name for name in paths}


def test_no_duckdb_file_is_an_error(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"no database" * 2000)
    with pytest.raises(ReplicaError):
        owner_of(path)


def test_adoption_takes_the_position_over_and_leaves_the_rest(tmp_path):
    path = tmp_path / "r.db"
    node_replica(path)
    gone = Table("gone", (Column("id", "int", "int(11)"),))
    states = {state.name: state for state in adopt(path, "shop", {"items": items(), "gone": gone}, server="uuid")}
    assert states["items"].state == "ok"
    assert (states["gone"].state, states["gone"].note) == ("recopy", "not in the adopted file")
    with duckdb.connect(str(path)) as connection:
        ledger = Ledger.open(connection)
        assert ledger.position() == Position("mysql-bin.000007", 1234, "", "uuid")
        assert ledger.tables() == states
        assert connection.execute("SELECT count(*) FROM cdc_binlog_position").fetchall() == [(1,)]
    assert owner_of(path) == "ours"
    with pytest.raises(ReplicaError, match="ours already"):
        adopt(path, "shop", {})


@pytest.mark.parametrize("table,item_type", [(items("Other"), "INTEGER"), (items(), "BIGINT")])
def test_adopted_tables_that_differ_are_copied_again(tmp_path, table, item_type):
    path = tmp_path / "r.db"
    node_replica(path, item_type=item_type)
    (state,) = adopt(path, "shop", {"items": table})
    assert state.state == "recopy"
    assert ("Name" if item_type == "INTEGER" else "id") in state.note


def test_what_is_not_the_node_servers_is_not_adopted(tmp_path):
    path = tmp_path / "r.db"
    with pytest.raises(ReplicaError, match="no such file"):
        adopt(path, "shop", {})
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t (a INTEGER)")
    with pytest.raises(ReplicaError, match="cdc_binlog_position"):
        adopt(path, "shop", {})
    path.unlink()
    node_replica(path)
    with pytest.raises(NotFoundError, match="other"):
        adopt(path, "other", {})
    assert owner_of(path) == "duckling-server"


@pytest.mark.slow
def test_a_file_that_another_process_writes_is_busy(tmp_path):
    import subprocess
    import sys

    path = tmp_path / "r.db"
    node_replica(path)
    code = f"import duckdb, sys; c = duckdb.connect({str(path)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(BusyError):
            owner_of(path)
        other.stdin.close()
