from __future__ import annotations

import copy

from torch import nn

from pyseq import utils
from pyseq.modules import IncrementalState, with_incremental_state


@with_incremental_state
class Decorated(nn.Module):
    pass


class Mixed(nn.Module, IncrementalState):
    pass


def test_modules_do_not_see_each_others_entries() -> None:
    state: dict = {}
    first = Mixed()
    modules = [first, Mixed(), copy.deepcopy(first), Decorated(), Decorated()]
    for number, module in enumerate(modules):
        assert utils.get_incremental_state(module, state, "cache") is None
        utils.set_incremental_state(module, state, "cache", (number,))
    assert [utils.get_incremental_state(m, state, "cache") for m in modules] == [(n,) for n in range(5)]
    assert utils.get_incremental_state(first, None, "cache") is None
    assert utils.set_incremental_state(first, None, "cache", 1) is None
