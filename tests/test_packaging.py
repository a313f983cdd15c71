"""pyseq as its users get it: a wheel built from the sdist, and an editable checkout, each in a fresh environment."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
# Without build isolation, the build tools of this environment are used also if it is not activated.
ENVIRONMENT["PATH"] += os.pathsep + sysconfig.get_path("scripts")
BUILD_TOOLS = ("setuptools", "wheel", "pybind11", "cmake", "ninja")

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed; its output is the message if it does not."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def new_environment(folder: Path) -> Path:
    """The Python of a fresh environment that sees the packages of this one (torch, numpy), but not its pyseq."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # A folder named in a .pth file comes after the environment's own packages, and .pth files in it are not read:
    # an editable pyseq of the running environment stays out.
    (Path(packages) / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(python: Path, *arguments: str | Path) -> None:
    """Install into the environment of ``python``; what pip sees of pyseq in the outer one does not count."""
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--ignore-installed",
    ]
    run(*pip, *arguments, cwd=python.parent)


@pytest.fixture(scope="module")
def isolation(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for pip: its build isolation where packages can be had, else the build tools of this environment."""
    if not os.environ.get("PYSEQ_NO_ISOLATION"):
        folder = tmp_path_factory.mktemp("probe")
        probe = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), "pybind11"]
        if subprocess.run(probe, cwd=folder, env=ENVIRONMENT, capture_output=True).returncode == 0:
            return []
    missing = [name for name in BUILD_TOOLS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"no build isolation, and this environment lacks {', '.join(missing)}")
    return ["--no-build-isolation"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone of the repository holds: no builds, no caches."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("clone")
    for name in run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(clone: Path, isolation: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    flags = ["--no-isolation"] if isolation else []
    run(sys.executable, "-m", "build", "--sdist", *flags, "--outdir", folder, clone, cwd=folder)
    return next(folder.glob("pyseq-*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, isolation: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", *isolation, "--wheel-dir", folder, sdist, cwd=folder)
    return next(folder.glob("pyseq-*.whl"))


def files_below(folder: Path, suffixes: tuple[str, ...]) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in suffixes}


def test_sdist_holds_all_that_the_build_needs(clone: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {f"csrc/{name}" for name in files_below(clone / "csrc", (".h", ".cpp", ".cu", ".cuh"))}
    wanted |= {f"kernels/{name}" for name in files_below(clone / "kernels", (".py",))}
    assert wanted | {"CMakeLists.txt", "setup.py", "pyproject.toml"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_holds_every_module(clone: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {f"pyseq/{name}" for name in files_below(clone / "pyseq", (".py",))}
    modules |= {f"pyseq/kernels/{name}" for name in files_below(clone / "kernels", (".py",))}
    modules |= {f"pyseq_benchmarks/{name}" for name in files_below(clone / "benchmarks", (".py",))}
    assert modules == {name for name in names if name.endswith(".py")}
    assert [name for name in names if name.startswith("pyseq/_core.") and name.endswith(".so")]
    # Also within pip's build isolation, where torch cannot be imported.
    if sys.platform == "linux" and Path(sysconfig.get_path("platlib"), "torch").exists():
        assert [name for name in names if name.startswith("pyseq/_torch.") and name.endswith(".so")]


# Prints where the three parts come from, after using each; then loads every command.
PROBE = """
import importlib.metadata, pathlib
import pyseq, pyseq._core, pyseq.kernels
from pyseq.data.batching import batch_by_size, native
from pyseq.version import __version__
assert native is pyseq._core.data and len(batch_by_size([0, 1, 2], [2, 2, 2], max_tokens=4)) == 2
assert importlib.metadata.version("pyseq") == __version__
commands = importlib.metadata.distribution("pyseq").entry_points
folder = pathlib.Path(pyseq.__file__).parent / "cli"
for command in commands:
    if (folder / (command.module.rpartition(".")[2] + ".py")).exists():
        command.load()
for module in (pyseq, pyseq._core, pyseq.kernels):
    print(module.__file__)
"""


def test_the_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "venv")
    install(python, "--no-index", wheel)
    files = [Path(line) for line in run(python, "-c", PROBE, cwd=tmp_path).splitlines()]
    assert all(tmp_path in file.parents for file in files), files
    command = python.with_name("pyseq-preprocess")
    assert command.is_file()
    if (ROOT / "pyseq" / "cli" / "preprocess.py").exists():
        assert "--trainpref" in run(command, "--help", cwd=tmp_path)
    # Both as the command and, for the processes that it starts, as a package of another name than in a checkout.
    assert "startup/help" in run(python.with_name("pyseq-bench"), "list", "startup", cwd=tmp_path)
    options = ["--quick", "--device", "cpu", "--json", tmp_path / "run.json"]
    run(python.with_name("pyseq-bench"), "run", "train/tiny-multi30k", *options, cwd=tmp_path)
    assert '"part:backward"' in (tmp_path / "run.json").read_text()


def test_an_editable_checkout_works(clone: Path, isolation: list[str], tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    shutil.copytree(clone, checkout)
    python = new_environment(tmp_path / "venv")
    install(python, *isolation, "--editable", checkout)
    files = [Path(line) for line in run(python, "-c", PROBE, cwd=tmp_path).splitlines()]
    assert files[0] == checkout / "pyseq" / "__init__.py"
    assert files[1].parent == checkout / "pyseq"
    assert files[2] == checkout / "kernels" / "__init__.py"
