"""A database of the test server, and a replica that follows it."""

import contextlib
from functools import partial

import duckdb
import pytest

from duckling_provider.replication.apply.applier import Applier
from duckling_provider.replication.apply.foreign_keys import from_elsewhere
from duckling_provider.replication.apply.generated import read_by_keys
from duckling_provider.replication.apply.reach import read_reach
from duckling_provider.replication.binlog.stream import BinlogStream
from duckling_provider.replication.model.ledger import Ledger
from duckling_provider.replication.model.tables import Position
from duckling_provider.replication.mysql.schema import read_tables
from duckling_provider.replication.mysql.source import connect, current_position


class Mirror:
    """A database of the server and a replica that follows it from its first table on."""

    def __init__(self, mariadb, database, source, path):
        self.mariadb, self.database, self.source, self.path = mariadb, database, source, path
        self.server = connect(source)
        self.replica = duckdb.connect(str(path))
        Ledger.create(self.replica).save_position(current_position(self.server))

    def run(self, *statements):
        self.mariadb.execute(list(statements), self.database)

    def catch_up(self, *, by_gtid=True, **options):
        ledger = Ledger.open(self.replica)
        start = ledger.position()
        start = start if by_gtid else Position(start.file, start.offset, "", start.server)
        options.setdefault("reach", self.reach)
        options.setdefault("reread", partial(read_by_keys, self.source))
        elsewhere = from_elsewhere(list(options.get("references", ())))
        applier = Applier(self.replica, ledger, database=self.database, **options)
        with BinlogStream(self.source, start, elsewhere=lambda: elsewhere) as stream:
            for event in stream.read():
                applier.take(event)
        applier.flush()
        assert ledger.position().order == current_position(self.server).order
        return applier.applied

    def reach(self):
        # Rights that came later count for new connections only.
        with contextlib.closing(connect(self.source)) as connection:
            return read_reach(connection, self.database)

    @property
    def states(self):
        return Ledger.open(self.replica).tables()

    def rows(self, table):
        columns = [column.name for column in self.states[table].table.columns]
        names = ", ".join('"' + name + '"' for name in columns)
        ours = self.replica.execute(f'SELECT {names} FROM "{table}"').fetchall()
        theirs = self.mariadb.execute(f"SELECT {', '.join(f'`{n}`' for n in columns)} FROM `{table}`", self.database)
        return sorted(ours, key=repr), sorted(theirs, key=repr)

    def assert_equal(self, *tables):
        """Columns, keys and rows are those of the server."""
        present = read_tables(self.server, self.database)
        states = self.states
        for table in tables or present:
            assert (states[table].state, states[table].note) == ("ok", "")
            assert {c.name for c in states[table].table.columns} == {c.name for c in present[table].columns}
            assert states[table].table.primary_key == present[table].primary_key
            ours, theirs = self.rows(table)
            assert ours == theirs
        assert not tables or set(tables) <= set(states)


@pytest.fixture
def mirror(mariadb, database, source, tmp_path):
    mirror = Mirror(mariadb, database, source, tmp_path / "replica.db")
    yield mirror
    mirror.replica.close()
    mirror.server.close()


@pytest.fixture
def site(installation, mariadb, database):
    """An entry whose replica mirrors `database`; called with fields it is written again."""

    def write(**fields):
        url = mariadb.url(database)
        installation.write(installation.entry(mysqlConnectionString=url, **fields))
        return installation.database()

    write.installation = installation
    write.run = lambda *statements: mariadb.execute(list(statements), database)
    write()
    return write


@pytest.fixture
def new_mirror(mariadb, tmp_path):
    """``with new_mirror() as mirror:`` one more, with a database of its own."""

    @contextlib.contextmanager
    def make():
        from duckling_provider.replication.mysql.source import Source

        name = mariadb.create_database()
        path = tmp_path / f"{name}.db"
        # Half of the time that connecting takes goes into reading the certificates of the world.
        source = Source.parse(mariadb.url(name, ssl_mode="DISABLED"), subject="production")
        mirror = Mirror(mariadb, name, source, path)
        try:
            yield mirror
        finally:
            mirror.replica.close()
            mirror.server.close()
            mariadb.execute(["SET foreign_key_checks = OFF", f"DROP DATABASE `{name}`"])
            path.unlink()

    return make


@pytest.fixture
def position(source):
    """``position() -> Position``: where the server's binlog ends now."""
    connection = connect(source)
    yield lambda: current_position(connection)
    connection.close()
