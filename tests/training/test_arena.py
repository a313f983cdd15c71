"""Parameters that lie together train as those that do not, and nobody who holds one notices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pyseq.cli import train
from pyseq.modules.multihead_attention import MultiheadAttention
from pyseq.optim.fused_adam import FusedAdamW
from pyseq.training import trainer as trainer_module
from pyseq.training.arena import arrange
from pyseq.training.checkpoint_file import load_checkpoint_file
from pyseq.training.precision import BFloat16, Precision


class Net(nn.Module):
    """Tied weights, a frozen layer, a parameter that no loss reaches, odd sizes, a view that somebody holds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 32)
        self.odd = nn.Linear(32, 7)
        self.back = nn.Linear(7, 32)
        self.out = nn.Linear(32, 10, bias=False)
        self.out.weight = self.embed.weight
        self.frozen = nn.Linear(32, 32).requires_grad_(False)
        self.unused = nn.Linear(32, 32)
        self.watched = nn.Linear(32, 32)
        self.watcher = [self.watched.weight.detach()[:2]]

    def forward(self, tokens):
        x = self.back(torch.tanh(self.odd(self.embed(tokens))))
        return self.out(self.watched(self.frozen(x)))


def test_what_can_move_lies_together_and_is_the_same():
    torch.manual_seed(0)
    net = Net()
    before = {name: p.clone() for name, p in net.named_parameters()}
    held, state_keys = net.odd.weight, list(net.state_dict())
    (arena,) = arrange(net)
    assert [name for name, p in net.named_parameters() if any(p is q for q in arena.parameters)] == [
        "embed.weight", "odd.weight", "odd.bias", "back.weight", "back.bias", "unused.weight", "unused.bias",
        "watched.bias",
    ]  # fmt: skip
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert list(net.state_dict()) == state_keys and net.out.weight is net.embed.weight and net.odd.weight is held
    end = arena.buffer.data_ptr()
    for p in arena.parameters:
        assert p.data_ptr() == end and (p.data_ptr() % 64 == 0 or p is arena.parameters[-1])
        end += 4 * p.numel()
    assert [tuple(p.shape) for p in arena.parameters[-1:]] == [(7,)]  # after it, nothing would be aligned
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})
    assert torch.equal(arena.buffer[: 10 * 32].view(10, 32), before["embed.weight"] + 1)
    assert torch.equal(net.watcher[0], before["watched.weight"][:2] + 1)
    clone = copy.deepcopy(net)
    assert clone.odd.weight.untyped_storage().nbytes() == 4 * clone.odd.weight.numel()


def test_projections_of_an_attention_follow_each_other():
    attention = MultiheadAttention(32, 4, self_attention=True)
    (arena,) = arrange(nn.ModuleList([attention]))
    k, v, q = (m.weight for m in (attention.k_proj, attention.v_proj, attention.q_proj))
    assert v.data_ptr() - k.data_ptr() == q.data_ptr() - v.data_ptr() == 4 * 32 * 32


def steps(net: nn.Module, precision: Precision, micro_batches: int) -> list[torch.Tensor]:
    """Three updates; the gradients of the last."""
    optimizer = FusedAdamW(precision.optimizer_parameters(), lr=0.1)
    for update in range(3):
        optimizer.zero_grad()
        precision.drop_gradients()
        for part in range(micro_batches):
            torch.manual_seed(10 * update + part)
            net(torch.randint(10, (4,))).float().square().mean().backward()
            precision.collect_gradients()
        optimizer.step()
        precision.after_step()
    return [p.grad for p in precision.optimizer_parameters()]


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_updates_are_the_same_bit_for_bit(micro_batches):
    torch.manual_seed(0)
    apart, joined = nn.ModuleList([Net()]), nn.ModuleList([Net()])
    joined.load_state_dict(apart.state_dict())
    a = steps(apart[0], Precision(apart), micro_batches)
    b = steps(joined[0], Precision(joined, joined=True), micro_batches)
    assert [g is None for g in a] == [g is None for g in b] and any(g is None for g in a)
    assert all(torch.equal(x, y) for x, y in zip(a, b) if x is not None)
    assert all(torch.equal(p, q) for p, q in zip(apart.parameters(), joined.parameters()))


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_masters_are_updated_by_the_sum_in_fp32(micro_batches, joined):
    torch.manual_seed(0)
    net = nn.ModuleList([Net()])
    before = [p.detach().clone() for p in net.parameters() if p.requires_grad]
    precision = BFloat16(net, joined)
    assert all(torch.equal(m, p) for m, p in zip(precision.masters, before))
    summed = {}
    for part in range(micro_batches):
        torch.manual_seed(part)
        net[0](torch.randint(10, (4,))).float().square().mean().backward()
        for i, p in enumerate(precision.parameters):
            if p.grad is not None:
                summed[i] = summed.get(i, 0) + p.grad.float()
        precision.collect_gradients()
    for i, master in enumerate(precision.masters):
        assert (master.grad is None) == (i not in summed)
        assert master.grad is None or torch.equal(master.grad, summed[i])
    with torch.no_grad():
        for master in precision.masters:
            master.mul_(1.01)
    precision.after_step()
    assert all(torch.equal(p, m.bfloat16()) for p, m in zip(precision.parameters, precision.masters))


def test_the_update_has_one_stretch_of_memory(train_argv, tmp_path, monkeypatch):
    """In the table of the update, and in what the norm is given."""
    built = []

    class Joined(Precision):
        def __init__(self, module, joined, **options):
            super().__init__(module, joined=True, **options)

    def keep(self, *args):
        init(self, *args)
        built.append(self)

    init = trainer_module.Trainer.__init__
    argv = [*train_argv, "--disable-validation", "--clip-norm", "0.1", "--update-freq", "2"]
    train.main([*argv, "--save-dir", str(tmp_path / "apart"), "--max-update", "6"])
    monkeypatch.setattr(trainer_module, "Precision", Joined)
    monkeypatch.setattr(trainer_module.Trainer, "__init__", keep)
    train.main([*argv, "--save-dir", str(tmp_path / "joined"), "--max-update", "3"])
    train.main([*argv, "--save-dir", str(tmp_path / "joined"), "--max-update", "6"])
    for trainer in built:
        assert [len(bucket.plan.table) for bucket in trainer.optimizer.optimizer._arranged.buckets] == [1]
        (gradients,) = trainer.optimizer.joined_grads
        assert gradients.numel() == sum(p.numel() for p in trainer.model.parameters())
    a, b = (load_checkpoint_file(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("apart", "joined"))
    for key in a:  # the norm is summed in another order
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-6)
