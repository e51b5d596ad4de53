"""`.ci/setup` and `.ci/uv`: whose environment they touch, what they say about missing programs, where they download.

In a checkout with an environment whose programs only note how they were called: nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
INPUTS = ("pyproject.toml", "constraints.txt", "duckling_provider/__init__.py", ".ci/setup", ".ci/uv")
#: Of a machine that has none of the tests' programs.
TOOLS = [
    "bash",
    "cat",
    "cut",
    "dirname",
    "env",
    "flock",
    "grep",
    "ls",
    "mkdir",
    "rm",
    "sed",
    "sha256sum",
    "tail",
    "touch",
]


class Checkout:
    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.venv = self.folder / ".venv"
        self.calls = self.folder / "calls"
        for name in INPUTS:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)

    def make_venv(self) -> None:
        """As if this checkout had made it; its Python succeeds in everything."""
        (self.venv / "bin").mkdir(parents=True)
        (self.venv / "pyvenv.cfg").touch()
        (self.venv / ".checkout").write_text(f"{self.folder}\n")
        for name in ("python", "uv"):
            program = self.venv / "bin" / name
            program.write_text(f'#!/bin/bash\necho "$*" >>"{self.calls}"\n')
            program.chmod(0o755)

    def stamp(self, name: str) -> None:
        content = f"{self.folder}\n".encode() + b"".join((self.folder / part).read_bytes() for part in INPUTS)
        (self.venv / f".ready-{name}").write_text(hashlib.sha256(content).hexdigest() + "\n")

    def start(self, name: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.folder / ".ci" / "setup", name],
            env={**os.environ, "VENV": ".venv", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def setup(self, name: str, **environment: str) -> tuple[int, str]:
        process = self.start(name, **environment)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path / "a checkout")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- whose environment it is


@pytest.mark.parametrize("name", ["demo", "remove"])
@pytest.mark.parametrize("known_by", ["its own note", "the editable install"])
def test_the_environment_of_another_checkout_is_refused_and_stays_as_it_is(checkout, tmp_path, known_by, name):
    other = Checkout(tmp_path / "the other 100%")
    other.make_venv()
    if known_by == "the editable install":
        (other.venv / ".checkout").unlink()
        info = other.venv / "lib" / "python3.11" / "site-packages" / "duckling_provider-0.1.0.dist-info"
        info.mkdir(parents=True)
        text = json.dumps({"url": other.folder.as_uri(), "dir_info": {"editable": True}})
        (info / "direct_url.json").write_text(text)
    before = tree(other.folder)
    code, output = checkout.setup(name, VENV=str(other.venv))
    assert code == 1
    assert f"VENV={other.venv} belongs to the checkout {other.folder}, and this is {checkout.folder}" in output
    assert "Name another folder (VENV=FOLDER)" in output
    assert tree(other.folder).items() >= before.items()


def test_an_environment_that_the_set_up_did_not_make_is_refused(checkout):
    (checkout.venv / "lib").mkdir(parents=True)
    (checkout.venv / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (checkout.venv / "lib" / "mine.py").touch()
    code, output = checkout.setup("demo")
    assert code == 1
    assert "VENV=.venv is a virtual environment that this set-up did not make; nothing was changed" in output
    assert (checkout.venv / "lib" / "mine.py").exists()


def test_a_folder_that_is_no_environment_is_refused(checkout):
    checkout.venv.mkdir()
    (checkout.venv / "thesis.txt").touch()
    for name in ("demo", "remove"):
        code, output = checkout.setup(name)
        assert code == 1
        assert "VENV=.venv exists and is no virtual environment" in output
    assert (checkout.venv / "thesis.txt").exists()


def test_remove_deletes_the_environment_of_this_checkout(checkout):
    checkout.make_venv()
    assert checkout.setup("remove") == (0, "")
    assert not checkout.venv.exists()


def test_a_set_that_does_not_exist_is_refused_with_those_that_do(checkout):
    code, output = checkout.setup("everything")
    assert code == 1
    assert 'no set "everything"; there are uv, lint, demo, dev, test, mysql, stores and cluster' in output


# ---- what is installed


@pytest.mark.parametrize("made", ["demo", "dev", "test", "cluster"])
def test_a_set_that_is_there_or_in_a_larger_one_starts_no_python(checkout, made):
    checkout.make_venv()
    checkout.stamp(made)
    assert checkout.setup("demo") == (0, "")
    assert checkout.called() == []


@pytest.mark.parametrize("name", INPUTS)
def test_whatever_the_set_depends_on_makes_it_anew_when_it_changes(checkout, name):
    checkout.make_venv()
    checkout.stamp("demo")
    with (checkout.folder / name).open("a") as file:
        file.write("# changed\n")
    code, output = checkout.setup("demo")
    assert code == 0, output
    assert any("--editable .[demo]" in call for call in checkout.called())
    checkout.calls.unlink()
    assert checkout.setup("demo") == (0, "")
    assert checkout.called() == []


def test_an_environment_without_this_set_gets_it_and_is_not_made_anew(checkout):
    checkout.make_venv()
    checkout.stamp("lint")
    code, output = checkout.setup("demo")
    assert code == 0, output
    assert "creating" not in output
    assert any("--editable .[demo]" in call for call in checkout.called())


@pytest.mark.parametrize("moment", ["-m venv", "-m pip", "pip install"])
def test_an_environment_whose_installer_was_killed_is_made_anew(checkout, moment):
    """Half a package may look like a whole one, as pip did after `ensurepip` had been killed."""
    checkout.make_venv()
    # Makes an environment like the one that the checkout has; hangs once at the moment.
    template = checkout.folder / "template"
    checkout.venv.rename(template)
    python = template / "bin" / "python"
    hang = checkout.folder / "hang"
    hang.touch()
    lines = (
        f'if [ -e "{hang}" ] && [[ "$*" == *"{moment}"* ]]; then rm "{hang}"; sleep 600; fi',
        f'[ "$2" != venv ] || cp -r "{template}/." .venv/',
    )
    python.write_text(python.read_text() + "\n".join(lines) + "\n")
    first = checkout.start("demo", PYTHON=str(python))
    while hang.exists():
        assert first.poll() is None
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=300)
    checkout.calls.unlink()
    code, output = checkout.setup("demo", PYTHON=str(python))
    assert code == 0, output
    assert "creating .venv" in output
    assert any("-m venv" in call for call in checkout.called())
    assert checkout.setup("demo") == (0, "")


def test_an_installation_that_fails_says_why_and_counts_for_nothing(checkout):
    checkout.make_venv()
    (checkout.venv / "bin" / "python").write_text('#!/bin/bash\n[ "$1" = -c ] || { echo no such version; exit 1; }\n')
    for _ in range(2):
        code, output = checkout.setup("demo")
        assert code == 1
        assert "no such version" in output
        assert "could not install; all of the output is in .venv/setup.log" in output


def test_two_at_once_install_once(checkout):
    checkout.make_venv()
    go = checkout.folder / "go"
    program = checkout.venv / "bin" / "python"
    program.write_text(program.read_text() + f'[ "$1" = -c ] || while [ ! -e "{go}" ]; do sleep 0.05; done\n')
    first = checkout.start("demo")
    while not any("-m pip" in call for call in checkout.called()):
        assert first.poll() is None
        time.sleep(0.05)
    second = checkout.start("demo")
    time.sleep(0.5)
    go.touch()
    for process in (first, second):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert sum("--editable" in call for call in checkout.called()) == 1


# ---- programs


@pytest.fixture
def bare_path(tmp_path):
    """A PATH without the programs that tests start, for a user who is not root and has no sudo."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    (folder / "id").write_text("#!/bin/bash\necho 1000\n")
    (folder / "id").chmod(0o755)
    return folder


@pytest.mark.parametrize("debian", [True, False])
def test_missing_programs_are_named_with_what_to_do_each_time(checkout, bare_path, debian):
    checkout.make_venv()
    if debian:
        (bare_path / "apt-get").write_text(f'#!/bin/bash\necho "apt-get $*" >>"{checkout.calls}"\n')
        (bare_path / "apt-get").chmod(0o755)
        advice = "as root: apt-get update && apt-get install --no-install-recommends openssl curl "
    else:
        advice = "this is no Debian or Ubuntu: install what Debian calls openssl curl "
    for _ in range(2):
        code, output = checkout.setup("test", PATH=str(bare_path))
        assert code == 0, output
        assert "setup: not installed: openssl curl " in output
        assert advice in output
    assert not any(call.startswith("apt-get") for call in checkout.called())
    assert sum("--editable" in call for call in checkout.called()) == 1


def test_the_demo_needs_none_of_the_tests_programs(checkout, bare_path):
    checkout.make_venv()
    code, output = checkout.setup("demo", PATH=str(bare_path))
    assert code == 0, output
    assert "not installed" not in output


# ---- pip's settings


@pytest.fixture
def uv_environment(monkeypatch, tmp_path):
    """What `.ci/uv` gives to uv for this content of pip.conf and these variables."""
    loader = importlib.machinery.SourceFileLoader("ci_uv", str(ROOT / ".ci" / "uv"))
    spec = importlib.util.spec_from_loader("ci_uv", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Nothing is to be left beside the script.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_", "SSL_", "REQUESTS_", "CURL_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)

    def environment(pip_conf: str = "", **variables: str) -> dict[str, str]:
        path = tmp_path / "pip.conf"
        path.write_text(pip_conf)
        monkeypatch.setenv("PIP_CONFIG_FILE", str(path))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return module.environment()

    return environment


def test_uv_asks_where_pip_asks(uv_environment, tmp_path, capfd):
    conf = f"""
[global]
index-url = http://user:pa%20ss@pip.example/simple
timeout = 7.5
find-links = {tmp_path} {tmp_path}/is-not-there
trusted-host = one.example two.example:8443
proxy = http://proxy.example:3128
cert = {tmp_path}/global.pem
[install]
cert = {tmp_path}/install.pem
"""
    env = uv_environment(conf, PIP_EXTRA_INDEX_URL="http://a.example/x http://b.example/y")
    assert env["UV_DEFAULT_INDEX"] == "http://user:pa%20ss@pip.example/simple"
    assert env["UV_INDEX"] == "http://a.example/x http://b.example/y"
    assert env["UV_FIND_LINKS"] == str(tmp_path)
    assert env["UV_INSECURE_HOST"] == "one.example two.example:8443"
    assert env["HTTPS_PROXY"] == env["HTTP_PROXY"] == "http://proxy.example:3128"
    assert env["SSL_CERT_FILE"] == f"{tmp_path}/install.pem"
    assert env["UV_HTTP_TIMEOUT"] == "7"
    assert capfd.readouterr() == ("", "")


def test_a_variable_outranks_pips_files_and_uvs_own_outranks_both(uv_environment):
    conf = "[global]\nindex-url = http://file.example/\n"
    env = uv_environment(conf, PIP_INDEX_URL="http://variable.example/")
    assert env["UV_DEFAULT_INDEX"] == "http://variable.example/"
    env = uv_environment(conf, PIP_INDEX_URL="http://variable.example/", UV_DEFAULT_INDEX="http://uv.example/")
    assert env["UV_DEFAULT_INDEX"] == "http://uv.example/"
