"""The package as Airflow, pip and a shell see it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import duckling_provider
from duckling_provider.get_provider_info import get_provider_info

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sys.executable).parent
#: Pins of the older Airflows, by `make constraints` as well.
MATRIX = sorted((ROOT / ".ci" / "matrix-constraints").glob("*.txt"))
#: That of `make cluster` is there once it has run.
EXTRAS = ("", "demo", "test", *(["cluster"] if importlib.util.find_spec("celery") else []))


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """What the real commands `airflow providers list` and `airflow plugins` print as JSON in a home of their own; in
    one process, because each takes seconds to begin."""
    program = """
import sys
from airflow.cli.cli_parser import get_parser
for command in (["providers", "list"], ["plugins"]):
    arguments = get_parser().parse_args([*command, "--output", "json"])
    arguments.func(arguments)
    print(flush=True)
    print("----", flush=True)
"""
    result = run(
        sys.executable,
        "-c",
        program,
        AIRFLOW_HOME=str(tmp_path_factory.mktemp("airflow")),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        # Logging to stdout would stand in front of the JSON.
        AIRFLOW__LOGGING__LOGGING_LEVEL="ERROR",
    )
    assert result.returncode == 0, result.stderr
    providers, plugins, _ = result.stdout.split("----\n")
    return {"providers": json.loads(providers), "plugins": json.loads(plugins)}


def constraints(path: Path = ROOT / "constraints.txt") -> list[Requirement]:
    lines = path.read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pinned(python: str, path: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """Name to version for one Python on Linux, e.g. ``"3.10"``."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.20",
        "sys_platform": "linux",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    pins = {}
    for pin in constraints(path):
        if pin.marker is None or pin.marker.evaluate(environment):
            name = canonicalize_name(pin.name)
            assert name not in pins, f"{name} is pinned twice for Python {python}"
            (specifier,) = pin.specifier
            pins[name] = specifier.version
    return pins


def declared() -> list[Requirement]:
    """The package's requirements with those of its extras, as pip sees them."""
    requirements = [Requirement(text) for text in importlib.metadata.requires("duckling-provider") or []]
    assert requirements
    return requirements


def _extras() -> list[str]:
    return ["", *importlib.metadata.metadata("duckling-provider").get_all("Provides-Extra", [])]


# --- What Airflow sees


def test_the_provider_info_follows_airflows_schema():
    schema = json.loads(importlib.resources.files("airflow").joinpath("provider_info.schema.json").read_text())
    info = get_provider_info()
    jsonschema.validate(info, schema)
    # The schema lets any key pass, a misspelt one too.
    assert set(info) - set(schema["properties"]) == {"versions"}


def test_everything_that_the_provider_info_names_exists():
    info = get_provider_info()
    modules = {
        module
        for kind in ("hooks", "operators", "sensors", "triggers")
        for group in info[kind]
        for module in group["python-modules"]
    }
    classes = {*info["extra-links"]}
    for module in sorted(modules):
        importlib.import_module(module)
    for dotted in sorted(classes):
        module, name = dotted.rsplit(".", 1)
        assert isinstance(getattr(importlib.import_module(module), name), type), dotted


def test_every_hook_operator_sensor_and_trigger_module_is_named_in_the_provider_info():
    info = get_provider_info()
    for kind in ("hooks", "operators", "sensors", "triggers"):
        found = {
            f"duckling_provider.{kind}.{path.stem}"
            for path in (ROOT / "duckling_provider" / kind).glob("*.py")
            if not path.stem.startswith("_")
        }
        assert {module for group in info[kind] for module in group["python-modules"]} == found


@pytest.mark.airflow
def test_airflow_lists_the_provider(airflow):
    versions = {row["package_name"]: row["version"] for row in airflow["providers"]}
    assert versions["duckling-provider"] == duckling_provider.__version__


@pytest.mark.airflow
def test_airflow_loads_the_plugin_once(airflow):
    assert [row["name"] for row in airflow["plugins"]].count("duckling") == 1


# --- What pip and a shell see


def test_the_version_has_one_place():
    assert importlib.metadata.version("duckling-provider") == duckling_provider.__version__
    assert get_provider_info()["versions"] == [duckling_provider.__version__]
    assert not re.search(r"^version\s*=", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_the_changelog_begins_with_this_version():
    heading = re.search(r"^## \[([^\]]+)\] - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert heading[1] == duckling_provider.__version__


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with wheel and sdist, built and checked as `make dist` does."""
    folder = tmp_path_factory.mktemp("dist")
    result = run(sys.executable, ROOT / ".ci" / "dist", folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """The programs of an environment that has the wheel, and what it needs from the environment of the tests."""
    environment = tmp_path_factory.mktemp("installed") / "env"
    assert run(sys.executable, "-m", "venv", "--without-pip", environment).returncode == 0
    (wheel,) = dist.glob("*.whl")
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install")
    result = run(*pip, "--no-deps", "--no-index", wheel)
    assert result.returncode == 0, result.stderr
    folders = run(python, "-c", "import site; print(site.getsitepackages()[0])").stdout.strip()
    # A path from a .pth file may hold .pth files of its own, and those are not read: the editable install is not there.
    others = importlib.metadata.distribution("apache-airflow-core").locate_file("")
    (Path(folders) / "others.pth").write_text(f"{others}\n")
    return environment / "bin"


def test_the_wheel_alone_runs_the_command(installed, tmp_path):
    result = run(installed / "duckling", "--version")
    assert result.stdout.strip() == f"duckling {duckling_provider.__version__}"
    where = run(installed / "python", "-I", "-c", "import duckling_provider; print(duckling_provider.__file__)").stdout
    assert where.startswith(str(installed.parent))
    assert "restore" in run(installed / "duckling", "--help", TERM="dumb", COLUMNS="120").stdout
    result = run(installed / "duckling", "databases", DATA_PATH=str(tmp_path))
    assert result.returncode == 2
    assert "databases.json: not found" in result.stderr


@pytest.mark.airflow
def test_the_wheel_alone_registers_with_airflow(installed, tmp_path):
    program = """
from airflow.providers_manager import ProvidersManager
import duckling_provider
print(duckling_provider.__file__, ProvidersManager().providers["duckling-provider"].version)
"""
    result = run(installed / "python", "-I", "-c", program, AIRFLOW_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    where, version = result.stdout.split()[-2:]
    assert where.startswith(str(installed.parent))
    assert version == duckling_provider.__version__


def test_the_package_says_that_it_is_typed():
    assert importlib.resources.files("duckling_provider").joinpath("py.typed").is_file()


@pytest.mark.slow
def test_the_console_script_shows_its_commands():
    result = run(SCRIPTS / "duckling", "--help", TERM="dumb", COLUMNS="120")
    assert result.returncode == 0, result.stderr
    for command in ("databases", "check", "backup", "list", "verify", "restore", "delete", "cleanup", "keygen"):
        assert re.search(rf"\b{command}\b", result.stdout), command


@pytest.mark.parametrize("path", [ROOT / "constraints.txt", *MATRIX], ids=lambda path: path.stem)
def test_constraints_hold_pins_only_and_no_addresses(path):
    text = path.read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-", text, re.MULTILINE), "an option of pip"
    for pin in constraints(path):
        assert pin.url is None
        assert not pin.extras, f"{pin}: pip refuses extras in constraints"
        assert [specifier.operator for specifier in pin.specifier] == ["=="], str(pin)


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_constraints_pin_every_requirement_within_its_bounds(python):
    pins = pinned(python)
    for requirement in declared():
        # Which extra is asked for is no matter here, for which Python is.
        if requirement.marker is not None and not any(
            requirement.marker.evaluate({"python_version": python, "extra": extra}) for extra in _extras()
        ):
            continue
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not pinned for Python {python}: make constraints"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{requirement} but {pins[name]} is pinned"


def test_the_matrix_has_pins_for_every_supported_airflow_within_the_packages_bounds():
    supported = re.search(r"versions=\(([\d. ]+)\)", (ROOT / ".ci" / "matrix").read_text())
    assert supported is not None
    files = {path.stem: path for path in MATRIX}
    newest = pinned("3.11")["apache-airflow"].rpartition(".")[0]
    assert [*files, newest] == supported[1].split()
    for version, path in files.items():
        pins = pinned("3.11", path)
        assert pins["apache-airflow"].startswith(f"{version}.")
        for requirement in declared():
            if requirement.marker is None or requirement.marker.evaluate({"extra": "test"}):
                pin = pins[canonicalize_name(requirement.name)]
                assert requirement.specifier.contains(pin), f"{path.name}: {requirement} but {pin} is pinned"


def test_requirements_have_lower_bounds_only():
    for requirement in declared():
        assert [specifier.operator for specifier in requirement.specifier] == [">="], str(requirement)


def test_constraints_pin_the_whole_installed_tree():
    pins = pinned("{}.{}".format(*sys.version_info))
    seen: set[tuple[str, str]] = set()
    waiting = [("duckling-provider", extra) for extra in EXTRAS]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                dependency = canonicalize_name(requirement.name)
                waiting += [(dependency, wanted) for wanted in ("", *requirement.extras)]
    tree = {name for name, _ in seen} - {"duckling-provider"}
    assert len(tree) > 100
    assert tree - set(pins) == set()
