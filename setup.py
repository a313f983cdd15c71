"""Build of the compiled core: setuptools calls CMake. Everything else about the package is in pyproject.toml.

``CMAKE_ARGS`` in the environment is passed on to CMake, for instance ``CMAKE_ARGS="-DPYSEQ_WERROR=OFF" pip install .``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Builds ``pyseq._core``, and what there is beside it, with CMake into the place where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        headers = sysconfig.get_paths()["include"]
        if not Path(headers, "Python.h").is_file():
            raise SystemExit(
                f"pyseq: {headers}/Python.h is missing. Install the headers of this Python "
                f"(Debian, Ubuntu: apt install python3-dev) and run the installation again."
            )
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S", str(ROOT),
            "-B", str(build),
            "-G", "Ninja",
            f"-DPYSEQ_OUTPUT_DIR={output}",
            f"-DPython_EXECUTABLE={sys.executable}",
            # A warning of a compiler that is newer than this source must not keep a user from installing it.
            f"-DPYSEQ_WERROR={'ON' if (ROOT / '.git').exists() else 'OFF'}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        # Without build isolation, cmake and ninja may be in an environment that is not activated.
        environment = {**os.environ, "PATH": os.pathsep.join([os.environ["PATH"], sysconfig.get_path("scripts")])}
        subprocess.run(configure, check=True, env=environment)
        subprocess.run(["cmake", "--build", str(build)], check=True, env=environment)

    def copy_extensions_to_source(self) -> None:
        """Of an editable installation: also what CMake has built beside the one module that setuptools knows of."""
        super().copy_extensions_to_source()
        for module in Path(self.build_lib, "pyseq").glob("_*.so"):
            shutil.copy(module, ROOT / "pyseq" / module.name)


BENCHMARKS = find_packages(include=["benchmarks", "benchmarks.*"])

setup(
    packages=[
        *find_packages(include=["pyseq", "pyseq.*"]),
        "pyseq.kernels",
        *(f"pyseq_{name}" for name in BENCHMARKS),
    ],
    package_dir={"pyseq.kernels": "kernels", "pyseq_benchmarks": "benchmarks"},
    ext_modules=[Extension("pyseq._core", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
