"""The package as it is installed: with and without a compiler, and what importing it does."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from wenet_kernels import native
from wenet_kernels.native import sources_digest

from .bare_checkout import bare_environment

ROOT = Path(__file__).parents[1]


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_import_is_quiet_and_leaves_the_gpu_alone():
    program = "import wenet, torch, sys; sys.exit(torch.cuda.is_initialized())"
    done = run(sys.executable, "-W", "error", "-c", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_bare_checkout_is_enough(tmp_path):
    """The version comes from pyproject.toml, the embedded text through a cache found without platformdirs."""
    program = (
        "import wenet, wenet_kernels; from wenet.data import load_corpus; from wenet.data.sources import cache_folder;"
        "print(wenet.__version__, wenet_kernels.backends()['cpu'], cache_folder(), load_corpus('sotu').name, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,  # found before what is installed
        env={**bare_environment(tmp_path), "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    found, without_native, *others = done.stdout.splitlines()
    assert [found, *others] == [version, f"{tmp_path}/.cache/wenet", "sotu"]
    if any(path.suffix in (".so", ".pyd") for path in (ROOT / "wenet_kernels").glob("_native.*")):  # but hidden
        assert without_native.startswith("built, but it cannot be loaded (cannot import name '_native'")
    else:
        assert without_native == "not built at installation (no C++ compiler, or WENET_NATIVE=0)"


@pytest.mark.parametrize(
    ("file", "reason", "said"),
    [
        (None, "cannot import name '_native'", "not built at installation (no C++ compiler, or WENET_NATIVE=0)"),
        ("_native.pyi", "cannot import name '_native'", "not built at installation"),
        ("_native.cpython-39-x86.so", "cannot import name '_native'", "built, but it cannot be loaded (cannot import"),
        (None, "libgomp.so.1: cannot open", "built, but it cannot be loaded (libgomp.so.1: cannot open); run pip"),
    ],
)
def test_why_there_is_no_native_module(tmp_path, monkeypatch, file, reason, said):
    if file is not None:
        (tmp_path / file).touch()
    for name, value in (("native", None), ("IS_STALE", False), ("_reason", reason)):
        monkeypatch.setattr(native, name, value)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    assert native.absence().startswith(said)


def test_the_build_needs_no_torch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert not any("torch" in requirement for requirement in project["build-system"]["requires"])


def test_native_module():
    module = pytest.importorskip("wenet_kernels._native", reason="the native module is not built")
    assert module.instruction_sets()[0] == "portable"


def test_a_native_module_of_other_sources_is_not_called():
    pytest.importorskip("wenet_kernels._native", reason="the native module is not built")
    program = (
        "import sys, types;"
        "sys.modules['wenet_kernels._native'] = types.ModuleType('wenet_kernels._native');"
        "import wenet_kernels; print(wenet_kernels.backends()['cpu'], wenet_kernels.native_status())"
    )
    done = run(sys.executable, "-c", program)
    assert done.stdout.count("built from other sources than these; run pip install again") == 2


def test_any_change_to_the_sources_tells(tmp_path):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path)
    digests = {sources_digest(ROOT), sources_digest(tmp_path)}
    assert len(digests) == 1 and None not in digests
    for name in ("CMakeLists.txt", "csrc/cpu/threads.cpp"):
        with (tmp_path / name).open("a") as file:
            file.write("\n")
        digests.add(sources_digest(tmp_path))
    assert len(digests) == 3
    shutil.rmtree(tmp_path / "csrc")
    assert sources_digest(tmp_path) is None


def test_nothing_names_the_machine_it_was_made_on():
    tracked = run("git", "-C", ROOT, "grep", "-lIE", "/" + "work/|/" + "root/")
    assert tracked.stdout == ""


@pytest.fixture
def source(tmp_path):
    """A copy of what git tracks, so that building leaves this tree alone, and no test finds what another has built."""
    folder = tmp_path / "source"
    folder.mkdir()
    archive = subprocess.run(["git", "-C", ROOT, "archive", "HEAD"], capture_output=True)
    if archive.returncode != 0:
        pytest.skip("needs a git checkout")
    subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
    return folder


def build_wheel(source: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", out, source, **environment)


def stale_cache(source: Path) -> Path:
    """What a build in this tree leaves, once it has been moved and the tools of the build are gone."""
    platform = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    cache = source / "build" / f"temp.{platform}" / "cmake" / "CMakeCache.txt"
    cache.parent.mkdir(parents=True)
    cache.write_text("CMAKE_HOME_DIRECTORY:INTERNAL=/gone\nCMAKE_MAKE_PROGRAM:FILEPATH=/gone/ninja\n")
    return cache


def test_wheel_carries_data_types_and_kernels(source, tmp_path):
    cache = stale_cache(source)
    done = build_wheel(source, tmp_path, WENET_NATIVE="1")
    if "WENET_NATIVE=1 asks" in done.stdout + done.stderr:
        pytest.skip("no C++ compiler here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/gone" not in cache.read_text()
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "wenet/data/sotu.tar.xz" in names
    assert {"wenet/py.typed", "wenet_kernels/py.typed"} <= set(names)
    assert any(name.startswith("wenet_kernels/_native") and name.endswith(".so") for name in names)


def test_without_a_compiler_it_is_pure_python_and_says_so(source, tmp_path):
    done = build_wheel(source, tmp_path, CXX=str(tmp_path / "nothing"))
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert output.count("no C++ compiler found: installing without native kernels, in pure Python") >= 1
    (wheel,) = tmp_path.glob("*.whl")
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())


def test_a_compile_error_is_not_hidden(source, tmp_path):
    (source / "csrc" / "module.cpp").write_text("this is not C++\n")
    done = build_wheel(source, tmp_path)
    output = done.stdout + done.stderr
    if "no C++ compiler found" in output:
        pytest.skip("no C++ compiler here")
    assert done.returncode != 0
    assert "module.cpp" in output
