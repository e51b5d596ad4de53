"""What is known of a backup lies beside it, outlives everything else, and is believed only where it can be."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from fixtures.memory_store import MemoryStore
from hypothesis import given
from hypothesis import strategies as st

from duckling_provider.backup.inventory.choice import list_backups, resolve
from duckling_provider.backup.inventory.local_backups import LocalBackups
from duckling_provider.backup.inventory.names import LATEST, LATEST_TESTED, backup_name
from duckling_provider.backup.inventory.sidecar import companions
from duckling_provider.backup.inventory.states import (
    BackupState,
    Evidence,
    pin,
    read_state,
    read_states,
    record_state,
    unpin,
)
from duckling_provider.backup.making.snapshot import take_snapshot
from duckling_provider.backup.reading.verify import verify_backup
from duckling_provider.backup.retention.clean_up import clean_up, delete_backup
from duckling_provider.base.errors import AccessDeniedError, IntegrityError, NotFoundError, RequestError
from duckling_provider.base.moments import stamp_of
from duckling_provider.stores.store import BytesBody

PREFIX = "production/"
NOW = datetime.now(timezone.utc)
HOUR = timedelta(hours=1)
KEY = "c4" * 32

STATES = st.sampled_from(["verified", "tested", "disproved"])
EVIDENCE = st.lists(
    st.builds(Evidence, STATES, st.integers(0, 50).map(lambda h: NOW - h * HOUR), st.just("full"), st.just("etl-1")),
    max_size=6,
)


def key_of(hours: float) -> str:
    return PREFIX + backup_name(stamp_of(NOW - hours * HOUR))


@pytest.fixture
def entry(installation: Any) -> Any:
    """Makes the entry, with the given fields of its `s3`."""

    def make(**s3: Any) -> Any:
        s3 = {"enabled": True, "bucket": "b", "region": "r", "accessKeyId": "a", "secretAccessKey": "s", **s3}
        installation.write(installation.entry(s3=s3))
        return installation.database()

    return make


def filled(*ages: float, mode: str = "none") -> MemoryStore:
    """A store with backups of those ages in hours."""
    store = MemoryStore(prefix=PREFIX, mode=mode)
    for hours in ages:
        store.put(key_of(hours), BytesBody(f"object of {hours}".encode()))
        if mode == "client-aes256":
            store.put(key_of(hours) + ".mac", BytesBody(b"mac"))
    return store


def note(database: Any, store: MemoryStore, hours: float, state: str, *, ago: float = 0.0) -> None:
    known = record_state(
        database, store, store.head(key_of(hours)), state, means="full", reason="flipped", at=NOW - ago * HOUR
    )
    assert known is not None


def state_of(database: Any, store: Any, hours: float) -> str:
    listed = {backup.key: backup for backup in list_backups(store)}
    return read_state(database, store, listed[key_of(hours)]).name


# ---- which evidence decides ---------------------------------------------------------------------------------


@given(EVIDENCE)
def test_nothing_older_than_a_disproof_counts(evidence: list[Evidence]):
    state = BackupState()
    for piece in evidence:
        state = state.with_(piece)
    disproved = [piece.at for piece in evidence if piece.state == "disproved"]
    proofs = [p for p in evidence if p.state != "disproved" and all(p.at > moment for moment in disproved)]
    if any(piece.state == "tested" for piece in proofs):
        assert state.name == "tested"
    elif proofs:
        assert state.name == "verified"
    else:
        assert state.name == ("disproved" if disproved else "uploaded")


@given(EVIDENCE, st.randoms())
def test_the_order_in_which_evidence_arrives_does_not_matter(evidence: list[Evidence], random: Any):
    shuffled = list(evidence)
    random.shuffle(shuffled)
    one, other = BackupState(), BackupState()
    for piece in evidence:
        one = one.with_(piece)
    for piece in shuffled:
        other = other.with_(piece)
    assert one.name == other.name
    assert {p.state: p.at for p in one.evidence} == {p.state: p.at for p in other.evidence}


# ---- beside the object --------------------------------------------------------------------------------------


@pytest.mark.parametrize("s3", [{}, {"encryption": "client-aes256", "encryptionKey": KEY}])
def test_evidence_lies_beside_the_object_and_is_no_backup(entry: Any, s3: dict[str, str]):
    database, store = entry(**s3), filled(1, 2)
    note(database, store, 1, "verified", ago=0.5)
    note(database, store, 1, "tested")
    assert [backup.key for backup in list_backups(store)] == [key_of(1), key_of(2)]
    assert state_of(database, store, 1) == "tested"
    assert state_of(database, store, 2) == "uploaded"
    written = json.loads(store.objects[key_of(1) + ".state"][1])
    assert [piece["state"] for piece in written["evidence"]] == ["verified", "tested"]
    assert ("mac" in written) == bool(s3)
    assert KEY not in json.dumps(written)


def test_evidence_outlives_a_rotation_of_the_key(entry: Any):
    old, new = "c4" * 32, "d5" * 32
    store = filled(1, mode="client-aes256")
    note(entry(encryption="client-aes256", encryptionKey=old), store, 1, "verified")
    database = entry(encryption="client-aes256", encryptionKey=new, previousEncryptionKeys=[old])
    assert state_of(database, store, 1) == "verified"
    assert state_of(entry(encryption="client-aes256", encryptionKey=new), store, 1) == "uploaded"


def forged(change: str, facts: dict[str, Any]) -> bytes:
    if change == "state":
        facts["evidence"][0]["state"] = "tested"
    elif change == "no mac":
        del facts["mac"]
    elif change == "other backup":
        facts["backup"] = backup_name(stamp_of(NOW - 9 * HOUR))
    elif change == "mac of another kind":
        facts["mac"] = 7
    elif change == "evidence of another kind":
        facts["evidence"] = {"state": "verified"}
    return json.dumps(facts).encode()


DAMAGE = [b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 5000, b'{"format": 1}']
CHANGES = ["state", "no mac", "other backup", "mac of another kind", "evidence of another kind"]


@pytest.mark.parametrize("change", CHANGES)
def test_forged_evidence_is_passed_over_with_a_warning(entry: Any, caplog: Any, change: str):
    database, store = entry(encryption="client-aes256", encryptionKey=KEY), filled(1, mode="client-aes256")
    note(database, store, 1, "verified")
    key = key_of(1) + ".state"
    store.put(key, BytesBody(forged(change, json.loads(store.objects[key][1]))))
    assert state_of(database, store, 1) == "uploaded"
    assert f"{key} is not believed" in caplog.text


@pytest.mark.parametrize("data", DAMAGE)
def test_damaged_evidence_is_passed_over_with_a_warning(entry: Any, caplog: Any, data: bytes):
    database, store = entry(), filled(1)
    store.put(key_of(1) + ".state", BytesBody(data))
    assert state_of(database, store, 1) == "uploaded"
    assert "is not believed" in caplog.text
    note(database, store, 1, "verified")
    assert state_of(database, store, 1) == "verified"


def test_evidence_of_a_moment_to_come_is_not_believed(entry: Any):
    database, store = entry(), filled(1)
    note(database, store, 1, "verified", ago=-1)
    assert state_of(database, store, 1) == "uploaded"


def test_evidence_does_not_count_for_an_object_that_replaced_the_one_it_is_of(entry: Any):
    database, store = entry(), filled(1)
    note(database, store, 1, "verified")
    store.put(key_of(1), BytesBody(b"OBJECT of 1"))
    assert state_of(database, store, 1) == "uploaded"


def test_evidence_copied_to_another_backup_does_not_count_there(entry: Any):
    database, store = entry(), filled(1, 2)
    note(database, store, 1, "verified")
    store.put(key_of(2) + ".state", BytesBody(store.objects[key_of(1) + ".state"][1]))
    assert state_of(database, store, 2) == "uploaded"


def test_a_store_that_keeps_no_note_is_no_failure(entry: Any, caplog: Any):
    database, store = entry(), filled(1)

    def refuse(key: str, data: bytes) -> None:
        raise AccessDeniedError("access denied", subject=key, action="s3:PutObject", code="AccessDenied")

    store.write_small = refuse  # type: ignore[method-assign]
    assert record_state(database, store, store.head(key_of(1)), "verified", means="full") is None
    assert "could not be noted" in caplog.text


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"7", b"[" * 50_000, b"\xff\xfe"])
def test_a_note_that_is_none_is_told_in_words_and_stops_no_clean_up(entry: Any, caplog: Any, data: bytes):
    database, store = entry(s3BackupRetentionDays=1), filled(1, 50)
    store.put(key_of(1) + ".state", BytesBody(data))
    assert state_of(database, store, 1) == "uploaded"
    assert f"{key_of(1)}.state is not believed: it is no JSON object" in caplog.text
    assert key_of(50) in clean_up(database, store).s3_deleted


def test_a_note_that_can_t_be_read_hides_no_backup_but_stops_a_deletion(entry: Any, caplog: Any):
    database, store = entry(s3BackupRetentionDays=1), filled(1, 50)
    note(database, store, 1, "verified")

    def refuse(key: str, limit: int) -> bytes:
        raise AccessDeniedError("access denied", subject=key, action="s3:GetObject", code="AccessDenied")

    store.read_small = refuse  # type: ignore[method-assign]
    assert state_of(database, store, 1) == "uploaded"
    assert latest(database, store) == key_of(1)
    assert "can't be read" in caplog.text
    with pytest.raises(AccessDeniedError):
        clean_up(database, store)
    assert key_of(50) in store.objects


def test_a_listing_without_evidence_costs_no_request(entry: Any):
    database, store = entry(), filled(1, 2, 3)

    def fail(key: str, limit: int) -> bytes:
        raise AssertionError(key)

    store.read_small = fail  # type: ignore[method-assign]
    assert {state.name for state in read_states(database, store, list_backups(store)).values()} == {"uploaded"}


def test_companions_go_with_the_backup(entry: Any):
    database, store = entry(encryption="client-aes256", encryptionKey=KEY), filled(1, mode="client-aes256")
    note(database, store, 1, "verified")
    pin(database, store, key_of(1), by="a test")
    delete_backup(store, key_of(1))
    assert store.objects == {}


# ---- beside a local backup ----------------------------------------------------------------------------------


def test_local_backups_have_states_and_pins_too(installation: Any, make_replica: Any):
    installation.write(installation.entry())
    database = installation.database()
    make_replica(installation.replica())
    snapshot = take_snapshot(database)
    local = LocalBackups(database)
    (listed,) = list_backups(local)
    assert read_state(database, local, listed).name == "verified"
    verify_backup(database, local)
    pin(database, local, snapshot.filename, by="a test")
    with snapshot.path.open("r+b") as file:
        file.seek(snapshot.size // 2)
        file.write(b"damage" * 100)
    with pytest.raises(IntegrityError):
        verify_backup(database, local)
    (listed,) = list_backups(local)
    assert listed.is_pinned
    assert read_state(database, local, listed).name == "disproved"
    assert {path.suffix for path in database.backup_dir.iterdir()} >= {".state", ".pin"}
    delete_backup(local, snapshot.filename)
    assert not any(path.exists() for path in (snapshot.path, *companions(snapshot.path)))


@pytest.mark.parametrize("trap", ["link", "pipe", "folder"])
def test_what_stands_in_a_state_file_s_place_hides_no_backup_and_is_not_followed(
    installation: Any, make_replica: Any, caplog: Any, trap: str
):
    installation.write(installation.entry())
    database = installation.database()
    make_replica(installation.replica())
    snapshot = take_snapshot(database)
    precious, place = database.backup_dir / "precious", snapshot.path.with_name(snapshot.filename + ".state")
    precious.write_text("{}")
    if trap == "link":
        place.symlink_to(precious)
    elif trap == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    local = LocalBackups(database)
    assert latest(database, local) == snapshot.filename
    assert "is not believed" in caplog.text
    verify_backup(database, local)
    assert precious.read_text() == "{}"


def test_no_other_file_is_reached_through_a_companion_s_name(installation: Any):
    installation.write(installation.entry())
    local = LocalBackups(installation.database())
    for name in ("../databases.json", "databases.json.state", "backup-2025.db.state", key_of(1)):
        with pytest.raises(NotFoundError):
            local.write_small(name, b"x")


# ---- which one is the latest --------------------------------------------------------------------------------


def latest(database: Any, store: MemoryStore, key: str = LATEST, **options: Any) -> str:
    return resolve(database, store, key, any_origin=True, **options)


def test_the_latest_is_the_newest_verified_one_and_newer_ones_are_named(entry: Any, caplog: Any):
    database, store = entry(), filled(1, 2, 3)
    note(database, store, 2, "verified")
    assert latest(database, store) == key_of(2)
    assert key_of(1) in caplog.text
    assert latest(database, store, proven=False) == key_of(1)


def test_where_nothing_is_recorded_the_latest_is_the_newest_with_a_warning(entry: Any, caplog: Any):
    assert latest(entry(), filled(1, 2)) == key_of(1)
    assert "nothing says that it was verified" in caplog.text


def test_a_disproved_backup_is_passed_over_with_its_name_and_reason(entry: Any, caplog: Any):
    database, store = entry(), filled(1, 2)
    note(database, store, 1, "verified", ago=0.5)
    note(database, store, 1, "disproved")
    assert latest(database, store) == key_of(2)
    assert f"{key_of(1)} is passed over: disproved" in caplog.text
    assert "flipped" in caplog.text


def test_where_all_are_disproved_none_is_the_latest(entry: Any):
    database, store = entry(), filled(1, 2)
    for hours in (1, 2):
        note(database, store, hours, "disproved")
    with pytest.raises(NotFoundError, match="every backup was disproved, the newest"):
        latest(database, store)
    assert latest(database, store, proven=False) == key_of(1)


def test_a_newer_verification_takes_a_disproof_back(entry: Any):
    database, store = entry(), filled(1)
    note(database, store, 1, "disproved", ago=0.5)
    note(database, store, 1, "verified")
    assert latest(database, store) == key_of(1)


def test_the_latest_tested_one_is_what_a_drill_restored(entry: Any):
    database, store = entry(), filled(1, 2, 3)
    note(database, store, 1, "verified")
    with pytest.raises(NotFoundError, match="no backup was tested"):
        latest(database, store, LATEST_TESTED)
    note(database, store, 3, "tested")
    assert latest(database, store, LATEST_TESTED) == key_of(3)
    with pytest.raises(RequestError):
        latest(database, store, key_of(3), before=NOW)


def test_before_a_moment_the_newest_verified_one_of_that_time_is_meant(entry: Any):
    database, store = entry(), filled(1, 2, 3)
    for hours in (1, 3):
        note(database, store, hours, "verified")
    assert latest(database, store, before=NOW - 1.5 * HOUR) == key_of(3)


def test_who_verifies_heads_only_gets_the_newest(entry: Any):
    database, store = entry(verify="head"), filled(1, 2)
    note(database, store, 2, "verified")
    assert latest(database, store) == key_of(1)


# ---- pins ---------------------------------------------------------------------------------------------------


def test_a_pin_is_set_and_taken_away_and_shown_by_a_listing(entry: Any):
    database, store = entry(), filled(1, 2)
    pin(database, store, key_of(2), by="a test")
    assert [backup.is_pinned for backup in list_backups(store)] == [False, True]
    unpin(store, key_of(2))
    unpin(store, key_of(2))
    assert not any(backup.is_pinned for backup in list_backups(store))
    with pytest.raises(NotFoundError):
        pin(database, store, key_of(7), by="a test")
    assert not any(key.endswith(".pin") for key in store.objects)
