from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, plot, report, targets

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda path: path.name)
def test_documents_agree_with_the_runs_that_they_quote(document: Path) -> None:
    text = document.read_text()
    assert report.rewritten(text) == text, f"run python -m benchmarks report --write {document.relative_to(ROOT)}"


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
    document.write_text(f"<!-- figures {tmp_path / 'run.json'} adan/* -->\n<!-- end of figures -->\n")
    assert report.main(["--write", str(document)]) == 1
    assert "no case is named 'adan/*'" in capsys.readouterr().err


def test_a_case_that_the_run_lacks_is_not_measured_yet_and_one_that_could_not_run_says_why(
    run: Make, tmp_path: Path
) -> None:
    taken = run()
    taken["skipped"] = {"train/tiny-multi30k": "needs data"}
    (tmp_path / "run.json").write_text(json.dumps(taken))
    figures = "<!-- figures run.json {} -->\nold\n<!-- end of figures -->\n".format
    assert "Not measured yet: the run has no case `adam/*`." in report.rewritten(figures("adam/*"), tmp_path)
    assert "train/tiny-multi30k: not run: needs data" in report.rewritten(figures("train/*"), tmp_path)


def whole_run(run: Make, side: Make, ours: float, loop: float) -> dict[str, Any]:
    """train/tiny-multi30k: tokens a second of two sides, which trained on unlike amounts."""
    sides = [
        side(
            "pyseq", [10.0], amount=[10 * ours], resident_bytes=[5e8], cpu_seconds=[18.0], **{"part:backward": [0.25]}
        ),
        side("lean torch loop", [20.0], amount=[20 * loop], resident_bytes=[1e9], **{"part:forward": [0.5]}),
        side("product 1024", [0.01], flops=10, ceiling="matrix"),
    ]
    taken = run(("train/tiny-multi30k", sides))
    taken["cases"][0]["unit"] = "tokens"
    return taken


def test_headlines_have_the_least_and_the_largest_of_the_runs_that_measured_them(run: Make, side: Make) -> None:
    """A run that lacks the case or the other side does not count; what none has is no line."""

    def taken(name: str, other: str, ours: float, theirs: float) -> dict[str, Any]:
        return run((name, [side("pyseq", [1.0], amount=[ours]), side(other, [2.0], amount=[2 * theirs])]))

    case = "train/tiny-multi30k"
    runs = [
        taken(case, "fairseq", 300.0, 100.0),
        taken(case, "fairseq", 500.0, 200.0),
        taken(case, "lean torch loop", 900.0, 100.0),
        taken("adam/fp32-200", targets.TORCH_TAIL, 150.0, 100.0),
    ]
    first, last = report.headlines_table(runs)
    assert (first["beside"], first["times as fast"]) == ("fairseq", "2.5 to 3 (2 runs)")
    assert last["times as fast"] == "1.5 (1 run)"


def test_rates_of_whole_runs_are_told_by_unit_and_compared_by_unit(run: Make, side: Make) -> None:
    ours, loop, product = report.case_table(whole_run(run, side, 6000.0, 4000.0)["cases"][0])
    assert ours["tokens/s (20 - 80 %)"].startswith("6,000") and loop["tokens/s (20 - 80 %)"].startswith("4,000")
    assert loop["time over pyseq's"].startswith("1.50") and product["time over pyseq's"] == ""
    assert ours["peak MB"] == "500" and ours["CPU s"] == "18"
    assert (ours["backward ms"], loop["forward ms"], ours["forward ms"]) == ("250", "500", "")
    assert list(ours).index("forward ms") < list(ours).index("backward ms")


def test_targets_of_several_runs_stand_side_by_side_and_all_have_to_hold(run: Make, side: Make, tmp_path: Path) -> None:
    for number, rate in ((9, 8000.0), (10, 7000.0)):
        (tmp_path / f"run-{number}.json").write_text(json.dumps(whole_run(run, side, rate, 4000.0)))
    text = report.rewritten("<!-- figures run-*.json targets -->\n<!-- end of figures -->\n", tmp_path)
    line = next(line for line in text.splitlines() if "1.836 x faster than lean torch loop (" in line)
    assert "| 2 (9), 1.75 (10) | holds in 1 of 2 runs |" in line
    assert "adam/" not in text, "targets of operations that the runs were not asked for"
    without = whole_run(run, side, 8000.0, 4000.0)
    without["cases"][0]["sides"].pop(1)
    (tmp_path / "run-10.json").write_text(json.dumps(without))
    text = report.rewritten("<!-- figures run-*.json targets -->\n<!-- end of figures -->\n", tmp_path)
    assert "| 2 (9) | holds |" in text  # a run without the peer says nothing against it
    with pytest.raises(ValueError, match="2 runs match"):
        report.rewritten("<!-- figures run-*.json train/* -->\n<!-- end of figures -->\n", tmp_path)


def test_a_peak_of_memory_is_judged_against_the_other_process(run: Make, side: Make) -> None:
    def verdict(ours: float) -> str:
        sides = [side("pyseq", [1.0], resident_bytes=[ours]), side("lean torch loop", [1.0], resident_bytes=[1e9])]
        judged = targets.judge(run(("train/lm-wikitext2", sides)))
        return next(one.verdict for one in judged if "peak memory" in one.target.text and one.value is not None)

    assert verdict(0.49e9) == "holds" and verdict(0.51e9) == "does not hold"


def test_compare_of_whole_runs_tells_rates(run: Make, side: Make) -> None:
    before, after = whole_run(run, side, 4000.0, 3000.0), whole_run(run, side, 5000.0, 3000.0)
    text = compare.table(compare.changes(before, after))
    assert "4,000 tokens/s" in text and "5,000 tokens/s" in text and "-20.0%" in text


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

    # Nor is it a change of pyseq that the yardstick has become twenty times as long.
    longer = taken(1.0, 1.0)
    longer["cases"][0]["sides"][1] |= {"name": "20 copies", "seconds": [20.0] * 4, "bytes": 160}
    assert verdict(taken(1.0, 1.0), longer) == "within the noise"

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
    curve = [side(f"pyseq, {n}", [2.0], amount=[n], scale=n) for n in (10, 100)]
    plot.plot(run(("adam/fp32", sides)), tmp_path / f"bars.{ending}")
    plot.plot(run(("growth/tokens", curve)), tmp_path / f"curve.{ending}")
    plot.plot(run(("adam/fp32", sides), ("growth/tokens", curve)), tmp_path / f"plot.{ending}")
    content = (tmp_path / f"plot.{ending}").read_bytes()
    assert content.startswith(b"\x89PNG") if ending == "png" else b"</svg>" in content


def test_sides_on_a_scale_make_curves_by_what_their_names_begin_with(run: Make, side: Make) -> None:
    sides = [
        side("pyseq, 1,000,000 pairs", [2.0], amount=[100], scale=1e6),
        side("pyseq, 10", [1.0], amount=[10], scale=10),
        side("numpy, 10", [4.0], amount=[10], scale=10),
        side("copy", [1.0]),
    ]
    case = run(("growth/tokens", sides))["cases"][0]
    assert plot.curves(case) == {"pyseq": [(10, 10.0), (1e6, 50.0)], "numpy": [(10, 2.5)]}
