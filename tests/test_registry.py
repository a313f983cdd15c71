"""Registration: what a plug-in author gets right, and gets told when not."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass

import pytest

from pyseq.config import ConfigGroup
from pyseq.errors import ConfigError
from pyseq.registry import REGISTRIES, Registry


class Animal:
    def __init__(self, cfg: object) -> None:
        self.cfg = cfg


@dataclass
class DogConfig(ConfigGroup):
    legs: int = 4


@pytest.fixture
def animals():
    yield Registry("animal", Animal, required=True)
    del REGISTRIES["animal"]


def test_build_makes_the_chosen_class_with_its_own_config(animals):
    @animals.register("dog", dataclass=DogConfig)
    class Dog(Animal):
        pass

    assert isinstance(animals.build(DogConfig(_name="dog", legs=3)), Dog)
    assert animals.build(DogConfig(_name="dog", legs=3)).cfg.legs == 3
    assert animals.build("dog").cfg == DogConfig()
    assert animals.build(Namespace(animal="dog", legs=5)).cfg == DogConfig(legs=5)


def test_a_plugin_without_a_dataclass_gets_the_namespace(animals):
    @animals.register("cat")
    class Cat(Animal):
        pass

    args = Namespace(animal="cat", anything=1)
    assert animals.build(args).cfg is args


def test_build_classmethod_is_preferred_to_the_constructor(animals):
    @animals.register("cow")
    class Cow(Animal):
        @classmethod
        def build_animal(cls, cfg, task):
            return ("built", task)

    assert animals.build(Namespace(animal="cow"), "task") == ("built", "task")


def test_unknown_name_lists_the_nearest(animals):
    animals.register("horse")(type("Horse", (Animal,), {}))
    with pytest.raises(ConfigError, match="unknown animal 'hrose'. Did you mean 'horse'"):
        animals.build("hrose")


def test_missing_choice_is_an_error_only_where_one_is_required(animals):
    with pytest.raises(ConfigError, match="--animal is required"):
        animals.build(Namespace(animal=None))
    animals.required = False
    assert animals.build(Namespace(animal=None)) is None


def test_duplicate_names_both_places(animals):
    @animals.register("dog")
    class First(Animal):
        pass

    with pytest.raises(ConfigError) as error:

        @animals.register("dog")
        class Second(Animal):
            pass

    lines = [First.__init__.__globals__["__file__"]]
    message = str(error.value)
    assert message.count(lines[0]) == 2 and "First" in message and "Second" in message
    assert animals.entry("dog").cls is First


def test_reimporting_the_same_class_is_not_a_duplicate(animals):
    def define():
        @animals.register("dog")
        class Dog(Animal):
            pass

        return Dog

    first, second = define(), define()
    assert first is not second
    assert animals.entry("dog").cls is second


def test_wrong_base_and_wrong_config_are_refused(animals):
    with pytest.raises(ConfigError, match="must extend"):
        animals.register("stone")(type("Stone", (), {}))
    with pytest.raises(ConfigError, match="ConfigGroup"):
        animals.register("dog", dataclass=dict)(type("Dog", (Animal,), {}))
    assert animals.names() == []
