from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, plot, report, targets

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("document", sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.name)
def test_documents_agree_with_the_runs_that_they_quote(document: Path) -> None:
    text = document.read_text()
    assert report.rewritten(text) == text, f"run python -m benchmarks report --write docs/{document.name}"


def test_a_table_is_written_into_a_document_and_checked(run: Make, side: Make, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run(("adam/fp32", [side("pyseq", [1e-3]), side("torch", [2e-3])]))))
    document = tmp_path / "document.md"
    begin, end = f"<!-- figures {tmp_path / 'run.json'} adam/* -->", "<!-- end of figures -->"
    document.write_text(f"Before.\n\n{begin}\nold\n{end}\n\nAfter.\n")
    assert report.main(["--verify", str(document)]) == 1
    assert report.main(["--write", str(document)]) == 0
    assert report.main(["--verify", str(document)]) == 0
    assert document.read_text() == (
        f"Before.\n\n{begin}\nadam/fp32: rows 4,096, logits bytes 1,000\n\n"
        "| side | ms (20 - 80 %) | time over pyseq's |\n| --- | --- | --- |\n"
        "| pyseq | 1 (1 - 1) |  |\n| torch | 2 (2 - 2) | 2.00 (2.00 - 2.00) |\n"
        f"{end}\n\nAfter.\n"
    )


def test_a_document_that_names_a_case_that_is_not_there_is_an_error(
    run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run()))
    document = tmp_path / "document.md"
    document.write_text(f"<!-- figures {tmp_path / 'run.json'} adam/* -->\n<!-- end of figures -->\n")
    assert report.main(["--write", str(document)]) == 1
    assert "no case is named 'adam/*'" in capsys.readouterr().err


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    text = report.rewritten("<!-- figures absent.json adam/* -->\nold\n<!-- end of figures -->\n", tmp_path)
    assert "Not measured yet: there is no `absent.json`." in text and "old" not in text


def test_targets_are_judged_by_the_figures(run: Make, side: Make) -> None:
    def judge(ours: float) -> dict[str, str]:
        sides = [
            side("pyseq", [ours], bytes=32),
            side("torch fused + clip_grad_norm_", [2.0], bytes=32),
            side("copy", [1.0], bytes=32, ceiling="bandwidth"),
        ]
        return {found.target.text: found.verdict for found in targets.judge(run(("adam/fp32-200", sides)))}

    faster, share = "at least 1.35 x faster than torch fused + clip_grad_norm_", "at least 100% of the copy's bandwidth"
    assert judge(0.99)[faster] == judge(0.99)[share] == "holds"
    assert judge(1.1)[faster] == "holds" and judge(1.1)[share] == "does not hold"
    assert judge(1.5)[faster] == "does not hold"
    assert set(judge(1.0).values()) == {"holds", "not run"}


def test_memory_is_judged_as_a_share_of_the_logits(run: Make, side: Make) -> None:
    def verdict(resident: int) -> str:
        ours = side("pyseq", [1.0], memory={"allocated": 20, "kept": 0, "resident": resident})
        judged = targets.judge(run(("linear_cross_entropy/4096x128x10000", [ours])))
        return next(one.verdict for one in judged if "memory" in one.target.text and one.value is not None)

    assert verdict(49) == "holds" and verdict(51) == "does not hold"


def test_every_target_names_a_case_of_its_device() -> None:
    from benchmarks.cases import all_cases

    known = {(device, case.name) for case in all_cases() for device in case.devices}
    assert {(target.device, target.case) for target in targets.TARGETS} <= known


def test_compare_puts_the_change_beside_the_noise(
    run: Make, side: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def taken(factor: float, machine: float) -> dict[str, Any]:
        wobble = [0.99, 1.0, 1.01, 1.0]
        ours = side("pyseq", [factor * machine * w for w in wobble])
        return run(("adam/fp32", [ours, side("copy", [machine] * 4, bytes=8, ceiling="bandwidth")]))

    def verdict(before: dict[str, Any], after: dict[str, Any]) -> str:
        return next(change.verdict for change in compare.changes(before, after) if change.side == "pyseq")

    # Twice the time on a machine that is itself twice as slow that day is no change.
    assert verdict(taken(1.0, 1.0), taken(1.0, 2.0)) == "within the noise"
    assert verdict(taken(1.0, 1.0), taken(1.1, 1.0)) == "slower"
    assert verdict(taken(1.0, 1.0), taken(0.9, 3.0)) == "faster"

    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for file, one in zip(files, (taken(1.0, 1.0), taken(1.1, 1.0))):
        file.write_text(json.dumps(one))
    assert compare.main([str(file) for file in files]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "pyseq  " in line and "adam" in line)
    assert line.split() == ["adam/fp32", "pyseq", "1000", "ms", "1100", "ms", "+10.0%", "+10.0%", "0.6%", "slower"]
    assert compare.main([*(str(file) for file in files), "--fail-on-slower"]) == 1


def test_compare_refuses_other_sizes(run: Make, side: Make) -> None:
    before, after = (run(("adam/fp32", [side("pyseq", [1.0])])) for _ in range(2))
    after["cases"][0]["config"] = {"rows": 1}
    with pytest.raises(ValueError, match="other sizes"):
        compare.changes(before, after)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot(run: Make, side: Make, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    sides = [side("pyseq", [1.0], bytes=8), side("copy", [1.0], bytes=8, ceiling="bandwidth")]
    plot.plot(run(("adam/fp32", sides)), tmp_path / f"plot.{ending}")
    content = (tmp_path / f"plot.{ending}").read_bytes()
    assert content.startswith(b"\x89PNG") if ending == "png" else b"</svg>" in content
