"""Builds the native kernels with CMake where a C++ compiler is found; all else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SANITIZE = os.environ.get("WENET_SANITIZE") == "1"  # see scripts/sanitize.sh
NATIVE = os.environ.get("WENET_NATIVE", "auto")  # 0: do without; 1: fail without a compiler


class CMakeBuild(build_ext):
    """Configures and builds `csrc/`. An error of a working compiler stops the installation and shows its output."""

    def build_extension(self, extension: Extension) -> None:
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        build = (Path(self.build_temp) / "cmake").resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            # Afresh: what an earlier build has cached names tools of a build environment that is gone by now.
            *("cmake", "--fresh", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DWENET_OUTPUT={target}",
            f"-DWENET_SANITIZE={'ON' if SANITIZE else 'OFF'}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build)], check=True)


def has_compiler() -> bool:
    """Whether a C++ compiler turns a program into an object file."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return False
    command = [*compiler.split(), "-x", "c++", "-c", "-", "-o", os.devnull]
    try:
        return subprocess.run(command, input=b"int main() {}", capture_output=True).returncode == 0
    except OSError:
        return False


def extensions() -> list[Extension]:
    if NATIVE != "0" and has_compiler():
        return [Extension("wenet_kernels._native", sources=[])]
    if NATIVE == "1":
        raise SystemExit("wenet: WENET_NATIVE=1 asks for the native kernels, but no C++ compiler works here")
    reason = "WENET_NATIVE=0" if NATIVE == "0" else "no C++ compiler found"
    print(f"wenet: {reason}: installing without native kernels, in pure Python", file=sys.stderr)
    return []


setup(ext_modules=extensions(), cmdclass={"build_ext": CMakeBuild})
