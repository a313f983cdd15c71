"""What fairseq computed, where the folder with it is at hand. `make check-reference` prints the whole table."""

from __future__ import annotations

import pytest

from benchmarks import check_reference
from pyseq.cli.plugins import load_plugins

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("check", ["preprocess", "batches", "checkpoint_layout", "generation"])
def test_as_fairseq(reference, check, capsys):
    load_plugins()
    report = check_reference.Report()
    getattr(check_reference, f"check_{check}")(reference, report)
    assert report.failed == 0, capsys.readouterr().out
