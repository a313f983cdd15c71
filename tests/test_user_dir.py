"""--user-dir: folders of every shape are imported, and a broken one shows the user's own lines."""

from __future__ import annotations

import itertools
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from pyseq.errors import ConfigError
from pyseq.optim.lr_scheduler import LR_SCHEDULERS
from pyseq.user_dir import import_user_dir

PLUGIN = """
from pyseq.optim.lr_scheduler import LRScheduler, register_lr_scheduler

@register_lr_scheduler("{name}")
class Schedule(LRScheduler):
    pass
"""

numbers = itertools.count()


@pytest.fixture(autouse=True)
def restore_import_state(monkeypatch: pytest.MonkeyPatch):
    """Registries keep what was registered: tests use fresh names. What else an import leaves behind is undone."""
    path, finders, modules = list(sys.path), list(sys.meta_path), set(sys.modules)
    yield
    sys.path[:], sys.meta_path[:] = path, finders
    for name in set(sys.modules) - modules:
        if name.split(".")[0].startswith(("pkg", "user_dir_", "scipy_like")):
            del sys.modules[name]


def fresh(stem: str = "pkg") -> str:
    return f"{stem}{next(numbers)}_{id(numbers):x}"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    return root


def load(path: Path | str) -> ModuleType:
    module = import_user_dir(path)
    assert module is not None
    return module


def test_no_user_dir() -> None:
    assert import_user_dir(None) is None
    assert import_user_dir("") is None


def test_package_with_only_an_init_file(tmp_path: Path) -> None:
    schedule = fresh("schedule")
    package = write(tmp_path / fresh(), {"__init__.py": PLUGIN.format(name=schedule)})
    module = load(package)
    assert module.__name__ == package.name and sys.modules[package.name] is module
    assert LR_SCHEDULERS.entry(schedule).where.startswith(str(package / "__init__.py"))


def test_twice_by_different_spellings_is_one_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = write(tmp_path / fresh(), {"__init__.py": "import builtins\ncount = []\ncount.append(1)\n"})
    monkeypatch.chdir(tmp_path)
    first = load(package)
    link = tmp_path / fresh()
    link.symlink_to(package)
    for again in (package.name, f"./{package.name}/", f"{tmp_path}/../{tmp_path.name}/{package.name}", link):
        assert import_user_dir(again) is first
    assert first.count == [1]


@pytest.mark.parametrize("with_init", [True, False])
@pytest.mark.parametrize("folder", ["models", "tasks", "criterions", "optim", "optim/lr_scheduler", "scoring"])
def test_plugin_folders_are_imported(tmp_path: Path, folder: str, with_init: bool) -> None:
    schedule = fresh("schedule")
    files = {f"{folder}/one.py": PLUGIN.format(name=schedule), f"{folder}/_private.py": "raise RuntimeError"}
    if with_init:
        files |= {"__init__.py": "", f"{folder}/__init__.py": ""}
    load(write(tmp_path / fresh(), files))
    assert schedule in LR_SCHEDULERS


def test_package_comes_before_its_folders(tmp_path: Path) -> None:
    files = {
        "__init__.py": "order = ['package']",
        "models/__init__.py": "",
        "models/m.py": "from .. import order\norder.append('m')",
    }  # noqa: E501
    assert load(write(tmp_path / fresh(), files)).order == ["package", "m"]


def test_relative_and_absolute_imports_of_itself_and_of_what_lies_beside_it(tmp_path: Path) -> None:
    name, beside = fresh(), fresh()
    write(tmp_path, {f"{beside}.py": "value = 3"})
    init = f"""
        from .a import value
        from {name} import a as absolute
        from {name}.sub.b import value as below
        import {name}.sub.c
        from {beside} import value as outside
        deep = {name}.sub.c.value
    """
    files = {
        "__init__.py": init,
        "a.py": "value = 1",
        "sub/__init__.py": "",
        "sub/b.py": "value = 2",
        "sub/c.py": "value = 4",
    }
    module = load(write(tmp_path / name, files))
    assert (module.value, module.absolute.value, module.below, module.outside, module.deep) == (1, 1, 2, 3, 4)


def test_sys_path_grows_at_its_end_only(tmp_path: Path) -> None:
    before = list(sys.path)
    load(write(tmp_path / fresh(), {"__init__.py": ""}))
    assert sys.path == [*before, str(tmp_path)]


def test_single_file(tmp_path: Path) -> None:
    schedule, name = fresh("schedule"), fresh()
    write(tmp_path, {f"{name}.py": PLUGIN.format(name=schedule)})
    assert load(tmp_path / f"{name}.py").__name__ == name
    assert schedule in LR_SCHEDULERS


def test_folder_called_torch(tmp_path: Path) -> None:
    import torch

    schedule = fresh("schedule")
    init = f"""
        import torch
        import torch.nn.functional as F
        from torch import nn, Tensor
        from torch.optim import Adam           # there is an optim/ here too, without an Adam
        from torch.losses import LOSS          # our own
        from torch import losses
        import torch.losses as also
        from .losses import LOSS as relative
        zero = F.relu(torch.zeros(1))
        {textwrap.indent(PLUGIN.format(name=schedule), " " * 8).strip()}
    """
    files = {
        "__init__.py": init,
        "losses.py": "LOSS = 7\nfrom torch.optim import mine",
        "optim/__init__.py": "mine = 8",
    }
    module = load(write(tmp_path / "torch", files))
    assert sys.modules["torch"] is torch and module is not torch
    assert module.Adam is torch.optim.Adam and module.nn is torch.nn
    assert module.LOSS == module.relative == module.losses.LOSS == module.also.LOSS == 7
    assert module.losses.mine == 8
    assert schedule in LR_SCHEDULERS
    assert not hasattr(torch, "losses")


def test_two_folders_of_one_name_keep_to_themselves(tmp_path: Path) -> None:
    name = fresh()
    files = {
        "__init__.py": f"from {name}.values import value\nimport {name}.values as v\nfrom {name} import values",
        "values.py": "value = '{}'",
    }  # noqa: E501
    modules = []
    for side in ("left", "right"):
        written = {file: text.format(side) if file == "values.py" else text for file, text in files.items()}
        modules.append(load(write(tmp_path / side / name, written)))
    assert (
        [m.value for m in modules]
        == [m.v.value for m in modules]
        == [m.values.value for m in modules]
        == ["left", "right"]
    )


def test_name_of_a_library_that_is_not_imported_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later import of the library must not find the user's folder."""
    name = fresh("scipy_like")
    write(tmp_path / "site" / name, {"__init__.py": "real = True"})
    monkeypatch.syspath_prepend(tmp_path / "site")
    mine = load(write(tmp_path / "user" / name, {"__init__.py": "real = False"}))
    assert mine.real is False
    assert __import__(name).real is True


def test_folder_whose_name_is_no_identifier(tmp_path: Path) -> None:
    files = {"__init__.py": "from .a import value", "a.py": "value = 1", "models/m.py": "from ..a import value"}
    assert load(write(tmp_path / f"my-plugin.v2 {fresh()}", files)).value == 1


def test_already_imported_by_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, name = fresh("schedule"), fresh()
    write(tmp_path / name, {"__init__.py": "", "criterions/c.py": PLUGIN.format(name=schedule)})
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__(name)
    assert import_user_dir(tmp_path / name) is module
    assert schedule in LR_SCHEDULERS


def test_classes_can_be_pickled(tmp_path: Path) -> None:
    import pickle

    files = {"__init__.py": "from .a import A", "a.py": "class A: pass"}
    for folder in (tmp_path / fresh(), tmp_path / "torch", tmp_path / "json"):
        module = load(write(folder, files))
        assert isinstance(pickle.loads(pickle.dumps(module.A())), module.A)


# Bad input.


def test_missing_path_says_what_was_tried(tmp_path: Path) -> None:
    write(tmp_path / "my_plugin", {"__init__.py": ""})
    with pytest.raises(ConfigError) as error:
        import_user_dir(tmp_path / "my_plugins")
    assert str(tmp_path / "my_plugins") in str(error.value)
    assert "Did you mean 'my_plugin'?" in str(error.value)


def test_folder_with_nothing_to_import(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to import there"):
        import_user_dir(tmp_path)


def test_file_that_is_not_python(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ConfigError, match="expected a folder or a .py file"):
        import_user_dir(tmp_path / "notes.txt")


def test_exception_shows_the_users_lines_and_no_others(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from . import model\n",
        "model.py": "import torch\n\nwidth = torch.zeros(2).reshape(3)  # mine\n",
    }
    package = write(tmp_path / fresh(), files)
    with pytest.raises(ConfigError) as error:
        import_user_dir(package)
    message = str(error.value)
    assert f'File "{package}/__init__.py", line 1' in message and "from . import model" in message
    assert f'File "{package}/model.py", line 3' in message and "reshape(3)  # mine" in message
    assert "RuntimeError: shape '[3]' is invalid" in message
    assert message.count('File "') == 2


def test_syntax_error_shows_the_line(tmp_path: Path) -> None:
    package = write(tmp_path / fresh(), {"__init__.py": "", "models/m.py": "def f(:\n    pass\n"})
    with pytest.raises(ConfigError) as error:
        import_user_dir(package)
    assert f'File "{package}/models/m.py", line 1' in str(error.value)
    assert "def f(:" in str(error.value) and "SyntaxError" in str(error.value)
    assert "importlib" not in str(error.value)


def test_error_of_ours_keeps_its_words_and_gains_the_users_line(tmp_path: Path) -> None:
    package = write(tmp_path / fresh(), {"__init__.py": PLUGIN.format(name="fixed")})
    with pytest.raises(ConfigError) as error:
        import_user_dir(package)
    message = str(error.value)
    assert "lr_scheduler 'fixed' is registered twice" in message
    assert f'File "{package}/__init__.py"' in message and '@register_lr_scheduler("fixed")' in message


def test_a_failed_import_can_be_mended_and_repeated(tmp_path: Path) -> None:
    for name in (fresh(), "torch"):
        package = write(tmp_path / name, {"__init__.py": "from .a import value", "a.py": "value = 1 / 0"})
        for _ in range(2):
            with pytest.raises(ConfigError, match="ZeroDivisionError"):
                import_user_dir(package)
        write(package, {"a.py": "value = 1"})
        assert load(package).value == 1
