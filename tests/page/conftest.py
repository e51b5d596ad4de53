"""A live standalone Airflow with a store, databases and two users, and a real browser: one of each for all tests."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from demo.airflow import PASSWORDS, Airflow
from demo.databases import write_databases
from demo.service import stop_all
from demo.serving import free_port
from demo.store import Store

# Its own five seconds are too few for a machine that does other things as well.
expect.set_options(timeout=60_000)

ARTIFACTS = Path(__file__).parents[2] / ".artifacts" / "screenshots"
KEY = "0123456789abcdef" * 4
API_KEY = "an-api-key-of-the-tests"
#: Another name of this machine, only for the browser: plain HTTP, and no "trustworthy origin" as localhost is one.
OTHER_HOST = "airflow.test"


@dataclass(frozen=True)
class Live:
    """The running installation."""

    url: str
    data: Path
    s3: dict[str, Any]
    passwords: dict[str, str]
    api_key: str = API_KEY

    def at(self, host: str | None = None) -> str:
        """The URL by which a browser on `host` comes here."""
        return self.url if host is None else self.url.replace("localhost", host)

    def replica(self, database_id: str = "shop") -> Path:
        return self.data / f"{database_id}.db"

    def bucket(self) -> Any:
        """The bucket, as a client of the test's own sees it."""
        import boto3

        resource = boto3.resource(
            "s3",
            endpoint_url=self.s3["endpoint"],
            region_name=self.s3["region"],
            aws_access_key_id=self.s3["accessKeyId"],
            aws_secret_access_key=self.s3["secretAccessKey"],
        )
        return resource.Bucket(self.s3["bucket"])

    def stored(self, database_id: str = "shop") -> set[str]:
        """The names of the objects of a database."""
        return {found.key.rpartition("/")[2] for found in self.bucket().objects.filter(Prefix=f"{database_id}/")}


@pytest.fixture(scope="module")
def live(make_replica, copy_airflow_database) -> Iterator[Live]:
    folder = Path(tempfile.mkdtemp(prefix="duckling-page-"))
    airflow, store = Airflow(folder / "home", folder / "data"), Store(folder / "store")
    airflow.data.mkdir()
    airflow.home.mkdir()
    copy_airflow_database(airflow.home / "airflow.db")
    try:
        where = store.start()
        entries = [
            {
                "id": "shop",
                "name": "Shop of the tests",
                "duckdbPath": "data/shop.db",
                "s3": {**where, "encryption": "client-aes256", "encryptionKey": KEY},
                # The first would be due within a quarter of an hour, in the middle of the tests.
                "drillIntervalDays": 0,
            },
            # Nothing listens there, and there is no backup; nor a drill that fails for that.
            {
                "id": "crm",
                "name": "Customers <b>",
                "duckdbPath": "data/crm.db",
                "s3": {**where, "endpoint": "http://127.0.0.1:9", "encryption": "none"},
                "drillIntervalDays": 0,
            },
            {"id": "broken", "name": "Broken", "duckdbPath": "data/broken.db", "s3": {**where, "bucket": ""}},
        ]
        write_databases(airflow.data, entries)
        for database_id in ("shop", "crm"):
            make_replica(airflow.data / f"{database_id}.db")
        url = airflow.start(
            # Not the one that people get: another standalone Airflow of the tests may be about to take it.
            port=free_port(),
            AUTO_BACKUP="false",
            DUCKLING_API_KEY=API_KEY,
            DUCKLING_POOL_SLOTS="5",
            AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS="admin:admin,viewer:viewer",
            # The DAGs stay as they are: parsed once, not every ten seconds for as long as the tests last.
            AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL="3600",
            AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL="3600",
        )
        dags = {"duckling_backup__shop", "duckling_restore__shop", "duckling_verify__shop"}
        airflow.wait(url, dags, patience=900)
        passwords = json.loads((airflow.home / PASSWORDS).read_text(encoding="utf-8"))
        yield Live(url, airflow.data, where, passwords)
    finally:
        # Its runs have ended, and nobody looks at how it ends.
        airflow.service.stop(patience=0)
        stop_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """For one module: as long as it lives, nothing else in this process can run an event loop of its own."""
    path = shutil.which("chromium")
    if path is None:
        pytest.fail("no chromium: `make setup` installs it, or apt-get install chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", f"--host-resolver-rules=MAP {OTHER_HOST} 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def signed_in(live, browser) -> Callable[..., BrowserContext]:
    """``signed_in(user="admin", host=None) -> context``: logged in once, by Airflow's own form.

    For all tests, because a context has the cache: Airflow's page is megabytes of scripts, fetched and compiled.
    """
    contexts: dict[tuple[str, str], BrowserContext] = {}

    def signed_in(user: str = "admin", host: str | None = None) -> BrowserContext:
        url = live.at(host)
        if (user, url) not in contexts:
            contexts[user, url] = context = browser.new_context(viewport={"width": 1280, "height": 800})
            context.set_default_timeout(120_000)
            page = context.new_page()
            page.goto(f"{url}/duckling/databases/shop")
            assert page.get_by_role("heading").inner_text() == "You are not logged in"
            page.get_by_role("link", name="Log in").click()
            page.fill("input[name=username]", user)
            page.fill("input[name=password]", live.passwords[user])
            page.click("button[type=submit]")
            page.wait_for_url(f"{url}/duckling/databases/shop")
            page.close()
        return contexts[user, url]

    return signed_in


@pytest.fixture
def visit(live, browser, signed_in) -> Iterator[Callable[..., Page]]:
    """``visit(path, user="admin", theme="light", host=None, **options) -> page``: logged in.

    `options` ask for a context of its own.
    """
    pages: list[Page] = []

    def visit(path: str, user: str = "admin", theme: str = "light", host: str | None = None, **options: Any) -> Page:
        context = signed_in(user, host)
        if options:
            context = browser.new_context(storage_state=context.storage_state(), **options)
        page = context.new_page()
        pages.append(page)
        page.set_default_timeout(120_000)
        page.add_init_script(f"localStorage.setItem('theme', '{theme}')")
        page.goto(f"{live.at(host)}{path}")
        return page

    yield visit
    for page in pages:
        page.close()


@pytest.fixture
def shoot(full) -> Callable[..., None]:
    """``shoot(page, name)``: keep a screenshot among the artifacts; only in the long form, it takes half a second."""

    def shoot(page: Page, name: str, *, whole: bool = False) -> None:
        if full:
            ARTIFACTS.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=ARTIFACTS / f"{name}.png", full_page=whole)

    return shoot
