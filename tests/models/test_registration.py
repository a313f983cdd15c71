"""Names on the command line: what is registered, what is refused, and in which words."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass

import pytest
from torch import nn

from pyseq.config import ConfigGroup
from pyseq.errors import ConfigError
from pyseq.models import ARCHITECTURES, MODELS, BaseModel, build_model, register_model, register_model_architecture
from pyseq.models.row import Row


@dataclass
class ToyConfig(ConfigGroup):
    width: int = 4
    depth: int = 1


class Toy(BaseModel):
    def __init__(self, args) -> None:
        super().__init__()
        self.args = args

    @classmethod
    def build_model(cls, args, task):
        return cls(args)


def test_a_model_without_a_dataclass_gets_the_namespace_itself(registries) -> None:
    register_model("toy")(Toy)

    @register_model_architecture("toy", "toy_wide")
    def toy_wide(args):
        args.width = getattr(args, "width", 9)

    @register_model_architecture("toy", "toy_wide_deep")
    def toy_wide_deep(args):
        args.depth = getattr(args, "depth", 7)
        toy_wide(args)

    assert "toy" not in ARCHITECTURES
    args = Namespace(arch="toy_wide_deep", width=3, other="x")
    model = build_model(args, None)
    assert model.args is args and (args.width, args.depth) == (3, 7)
    assert build_model(Namespace(_name="toy_wide"), None).args.width == 9
    assert isinstance(build_model(Namespace(_name="toy"), None), Toy)


def test_a_model_with_a_dataclass_gets_the_dataclass(registries) -> None:
    register_model("toy", dataclass=ToyConfig)(Toy)
    register_model_architecture("toy", "toy_deep")(lambda args: setattr(args, "depth", getattr(args, "depth", 7)))
    assert ARCHITECTURES["toy"].model_name == "toy"
    built = build_model(Namespace(arch="toy", width=5), None).args
    assert isinstance(built, ToyConfig) and (built.width, built.depth) == (5, 1)
    built = build_model({"_name": "toy_deep", "width": 5}, None).args
    assert isinstance(built, ToyConfig) and (built.width, built.depth) == (5, 7)
    node = ToyConfig(_name="toy", width=6)
    assert build_model(node, None).args is node


def test_a_second_model_of_a_name_is_told_with_both_places(registries) -> None:
    register_model("toy")(Toy)
    register_model("toy")(Toy)

    class Other(BaseModel):
        pass

    with pytest.raises(
        ConfigError, match=r"(?s)'toy' is registered twice: by Toy at .*\.py:\d+ and by .*Other at .*\.py:\d+"
    ):
        register_model("toy")(Other)
    assert MODELS.entry("toy").cls is Toy


def test_a_second_architecture_of_a_name_is_told_with_both_places(registries) -> None:
    register_model("toy")(Toy)

    def first(args):
        pass

    def second(args):
        pass

    register_model_architecture("toy", "toy_a")(first)
    register_model_architecture("toy", "toy_a")(first)
    with pytest.raises(ConfigError, match=r"'toy_a' is registered twice: at .*\.py:\d+ and at .*\.py:\d+"):
        register_model_architecture("toy", "toy_a")(second)
    with pytest.raises(ConfigError, match=r"'transformer_tiny' is registered twice: at .*architectures\.py:\d+ and at"):
        register_model_architecture("transformer", "transformer_tiny")(second)
    with pytest.raises(ConfigError, match=r"'toy_a' is registered twice: at .* and at .*test_registration\.py:\d+"):
        Row("toy", {}, name="toy_a")
    with pytest.raises(ConfigError, match=r"'toy_a' is registered twice: at .* and at .*test_registration\.py:\d+"):
        Row("toy", {}).row("toy_a")
    with pytest.raises(ConfigError, match=r"'toy_a' is registered twice"):
        register_model("toy_a", dataclass=ToyConfig)(Toy)


def test_what_is_no_model_is_refused(registries) -> None:
    with pytest.raises(ConfigError, match="must extend pyseq.models.model.BaseModel"):
        register_model("toy")(nn.Linear)
    with pytest.raises(ConfigError, match="must be a @dataclass"):
        register_model("toy", dataclass=dict)(Toy)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown model 'transfomer'. Did you mean 'transformer"):
        register_model_architecture("transfomer", "mine")(lambda args: None)
    with pytest.raises(ConfigError, match="must be a function of the options, not 3"):
        register_model_architecture("transformer", "mine")(3)  # type: ignore[type-var]


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match="unknown architecture 'transformer_iwslt_de_em'. Did you mean 'transformer_iwslt"
    ):
        build_model(Namespace(arch="transformer_iwslt_de_em"), None)
    with pytest.raises(ConfigError, match="--arch is required"):
        build_model(Namespace(), None)
