"""Families of MySQL's column types, by their bare names in lower case, as `tables.Column.data_type` has them."""

from __future__ import annotations

#: Integer types and their bits.
INTEGER_BITS = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}
INTEGERS = frozenset(INTEGER_BITS)
FLOATS = frozenset({"float", "double"})
#: Texts whose length is declared in characters.
CHARACTERS = frozenset({"char", "varchar"})
#: Texts whose length is bounded in bytes.
TEXT_BYTES = {"tinytext": 255, "text": 65_535, "mediumtext": 16_777_215, "longtext": 4_294_967_295}
TEXTS = CHARACTERS | TEXT_BYTES.keys()
CHOICES = frozenset({"enum", "set"})
BLOB_BYTES = {"tinyblob": 255, "blob": 65_535, "mediumblob": 16_777_215, "longblob": 4_294_967_295}
BINARIES = frozenset({"binary", "varbinary"})
BYTES = BINARIES | BLOB_BYTES.keys() | {"vector"}
#: A day, or a moment on one.
DATES = frozenset({"date", "datetime", "timestamp"})
#: Types with a precision of fractional seconds.
TIMES = frozenset({"time", "datetime", "timestamp"})
