"""Dataclass fields as flags."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Optional

import pytest

from pyseq.config import II, ChoiceEnum, ConfigGroup, group_from
from pyseq.config.flags import add_group_arguments, literal_dict
from pyseq.config.groups import opt


class Colour(ChoiceEnum):
    red = "red"
    blue = "blue"


@dataclass
class Options(ConfigGroup):
    data: str | None = opt(None, "the data")
    steps: int = opt(3, "steps, 100 % of them")
    rate: float | None = opt(None, "rate")
    old_style: Optional[int] = opt(None, "as older plug-ins write it")  # noqa: UP045
    quiet: bool = opt(False, "be quiet")
    pad_left: bool = opt(True, "pad on the right instead")
    rates: list[float] = opt([0.25], "rates")
    names: list[str] | None = opt(None, "names")
    colour: Colour = opt(Colour.red, "colour")
    join: str | None = opt(None, "join", argparse_const="@@ ", argparse_alias="--glue")
    seed: int = II("common.seed")


def parse(*argv: str, **kwargs: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_group_arguments(parser, Options, **kwargs)
    return parser.parse_args(["bin", *argv])


def test_outside_of_a_run_references_are_the_other_groups_defaults():
    assert Options().seed == 1
    assert group_from(Options, {"steps": 4, "seed": 9}) == Options(steps=4, seed=9)


def test_defaults():
    args = parse()
    assert vars(args) == {
        "data": "bin", "steps": 3, "rate": None, "old_style": None, "quiet": False, "pad_left": True,
        "rates": [0.25], "names": None, "colour": "red", "join": None,
    }  # fmt: skip


def test_values():
    args = parse(
        "--steps", "5", "--rate", "1e-3", "--old-style", "7", "--quiet", "--pad-left", "--rates", "0.1,2",
        "--names", "a, b", "--colour", "blue", "--glue",
    )  # fmt: skip
    assert (args.steps, args.rate, args.old_style, args.quiet, args.pad_left) == (5, 1e-3, 7, True, False)
    assert (args.rates, args.names, args.colour, args.join) == ([0.1, 2.0], ["a", "b"], "blue", "@@ ")


@pytest.mark.parametrize("text", ["0.1", "[0.1]", "(0.1,)"])
def test_lists_in_every_spelling(text):
    assert parse("--rates", text).rates == [0.1]


def test_suppressed_defaults_leave_gaps_for_the_architecture():
    assert vars(parse("--steps", "5", suppress_defaults=True)) == {"data": "bin", "steps": 5}


@pytest.mark.parametrize("argv", [("--steps", "x"), ("--rates", "a"), ("--colour", "green"), ("--rates", "1,x")])
def test_bad_values_are_refused(argv):
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parse(*argv)


def test_an_option_that_exists_is_left_alone():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", default=99, type=int)
    add_group_arguments(parser, Options)
    assert parser.parse_args(["bin"]).steps == 99


def test_literal_dict_reads_python_and_json():
    assert literal_dict("{'a': True}") == {"a": True} == literal_dict('{"a": true}')
    assert literal_dict(None) == literal_dict("{}") == {}
    with pytest.raises(ValueError):
        literal_dict("[1]")
