"""``import fairseq`` finds pyseq, unless there is a fairseq; what it does not have is told with the nearest name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pyseq import compat

needs_alias = pytest.mark.skipif(not compat.install(), reason="the real fairseq is installed")
REPOSITORY = Path(compat.__file__).parents[2]


def run(code: str, folder: Path, *args: str) -> str:
    """Standard output of ``code`` in a fresh process whose working directory, first on sys.path, is ``folder``."""
    script = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(REPOSITORY)!r}]\n{code}"
    done = subprocess.run([sys.executable, "-c", script, *args], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_alias
def test_installing_imports_nothing_and_is_done_once(tmp_path: Path) -> None:
    code = """
from pyseq import compat
assert compat.install() and compat.install()
assert sum(type(f).__name__ == "AliasFinder" for f in sys.meta_path) == 1
import fairseq.models.transformer, fairseq.tasks
assert "torch" not in sys.modules and "numpy" not in sys.modules and "pyseq.models" not in sys.modules
"""
    run(code, tmp_path)


def test_real_fairseq_wins(tmp_path: Path) -> None:
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq" / "__init__.py").write_text("real = True\n")
    assert run("from pyseq import compat; print(compat.install()); import fairseq; print(fairseq.real)", tmp_path) == (
        "False\nTrue\n"
    )


@needs_alias
def test_a_bare_folder_called_fairseq_does_not(tmp_path: Path) -> None:
    """Like the root of a clone of its repository."""
    (tmp_path / "fairseq" / "docs").mkdir(parents=True)
    code = "from pyseq import compat; compat.install(); import fairseq.models as m; print(m.FairseqEncoder.__module__)"
    assert run(code, tmp_path) == "pyseq.models.encoder\n"


def test_real_omegaconf_wins(tmp_path: Path) -> None:
    (tmp_path / "omegaconf.py").write_text("II = 'real'\n")
    assert (
        run("from pyseq import compat; compat.install(); import omegaconf; print(omegaconf.II)", tmp_path) == "real\n"
    )


@needs_alias
def test_missing_name_gives_the_nearest() -> None:
    with pytest.raises(
        ImportError, match="fairseq.models has no 'FairseqEncoderDecoder' in pyseq.*'FairseqEncoderDecoderModel'"
    ):
        from fairseq.models import FairseqEncoderDecoder  # noqa: F401
    with pytest.raises(ImportError, match=r"fairseq has no 'model' in pyseq. Did you mean 'models'"):
        from fairseq import model  # noqa: F401


@needs_alias
def test_missing_module_gives_the_nearest() -> None:
    with pytest.raises(
        ImportError, match="fairseq.models has no 'transformer_align' in pyseq. Did you mean 'transformer"
    ):
        import fairseq.models.transformer_align  # noqa: F401
    with pytest.raises(ImportError, match="fairseq.models has no 'wav2vec' in pyseq"):
        from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Model  # noqa: F401


@needs_alias
def test_missing_attribute_is_an_attribute_error() -> None:
    import fairseq.models

    assert not hasattr(fairseq.models, "BARTModel")
    assert getattr(fairseq.models, "BARTModel", None) is None
    with pytest.raises(AttributeError, match="fairseq.models has no 'BARTModel' in pyseq"):
        fairseq.models.BARTModel  # noqa: B018


@needs_alias
def test_all_the_ways_to_import() -> None:
    import fairseq
    import fairseq.data.dictionary as by_module
    from fairseq import data
    from fairseq.data import dictionary

    namespace: dict[str, object] = {}
    exec("from fairseq.data import *", namespace)
    assert fairseq.data is data and by_module is dictionary and fairseq.data.dictionary is dictionary
    assert namespace["Dictionary"] is data.Dictionary is dictionary.Dictionary
    assert "FairseqDataset" in namespace and "FairseqDataset" in dir(data)
    assert fairseq.__version__ == "0.12.2"


@needs_alias
def test_pickles_that_name_fairseqs_classes_load() -> None:
    import pickle

    from pyseq.data import Dictionary

    for protocol in (0, 2):  # those that hold names as plain text
        ours = pickle.dumps(Dictionary(), protocol)
        theirs = ours.replace(b"pyseq.data.dictionary", b"fairseq.data.dictionary")
        assert theirs != ours and type(pickle.loads(theirs)) is Dictionary


def test_script_runner(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("value = 3\n")
    (tmp_path / "script.py").write_text(
        "import sys, helper\nfrom fairseq.data import Dictionary as D\nprint(sys.argv[1:], helper.value, len(D()))\n"
    )
    command = [sys.executable, "-m", "pyseq.compat", str(tmp_path / "script.py"), "--flag", "x"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "['--flag', 'x'] 3 4\n"), done.stderr
