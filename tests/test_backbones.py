"""mlp and the two counters, against counts made by hand."""
import pytest
import torch
from torch import nn

from bc_clust.backbones import count_macs, count_parameters, mlp

PAPER = (784, 500, 500, 1000, 10)


def test_layers_of_the_paper():
    kinds = [type(layer) for layer in mlp(PAPER)]
    assert kinds == [nn.Linear, nn.ReLU] * 3 + [nn.Linear]
    assert [tuple(layer.weight.shape) for layer in mlp(PAPER) if isinstance(layer, nn.Linear)] == [
        (500, 784), (500, 500), (1000, 500), (10, 1000)]


def test_last_activation_and_another_activation():
    net = mlp((3, 4, 2), activation=nn.GELU, last_activation=True)
    assert [type(layer) for layer in net] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU]
    leaky = mlp((3, 4, 2), activation=lambda: nn.LeakyReLU(0.3))
    assert leaky[1].negative_slope == 0.3 and len(leaky) == 3
    relu = mlp((3, 2), last_activation=True)
    assert (relu(torch.randn(100, 3)) >= 0).all()


def test_forward_is_what_the_layers_say():
    torch.manual_seed(0)
    net, x = mlp((3, 4, 2)), torch.randn(5, 3)
    first, _, last = net
    by_hand = (x @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    assert torch.allclose(net(x), by_hand)


def test_each_activation_is_a_module_of_its_own():
    net = mlp((2, 3, 4, 5))
    assert net[1] is not net[3]


def test_same_seed_same_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return mlp(PAPER).state_dict()

    assert all(torch.equal(a, b) for a, b in zip(weights(0).values(), weights(0).values()))
    assert not torch.equal(weights(0)["0.weight"], weights(1)["0.weight"])


def test_widths_may_be_any_sequence():
    assert len(mlp([3, 2])) == 1
    assert len(mlp(w for w in (3, 2))) == 1
    assert len(mlp(torch.tensor([3, 4, 2]).numpy())) == 3


@pytest.mark.parametrize("widths", [(), (5,), (5, 0), (5, -1, 2), (5, 2.0), (5, True), (5, "3"), (5, None)])
def test_bad_widths(widths):
    with pytest.raises(ValueError, match="at least two whole numbers"):
        mlp(widths)


def test_parameters_by_hand():
    assert count_parameters(mlp(PAPER)) == 1_154_010
    assert count_parameters(mlp(PAPER[::-1])) == 1_154_784
    assert count_parameters(nn.Conv2d(3, 8, 5)) == 8 * (3 * 25 + 1)
    assert count_parameters(nn.BatchNorm1d(7)) == 14  # running statistics are no parameters
    assert count_parameters(nn.ReLU()) == 0


def test_frozen_and_tied_parameters():
    net = mlp((4, 3, 2))
    net[0].weight.requires_grad_(False)
    assert count_parameters(net) == 4 * 3 + 3 + 3 * 2 + 2
    assert count_parameters(net, trainable_only=True) == 3 + 3 * 2 + 2
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    assert count_parameters(tied) == 9


def test_macs_by_hand():
    assert count_macs(mlp(PAPER), (1, 784)) == 1_152_000
    assert count_macs(mlp(PAPER), (5, 784)) == 5 * 1_152_000
    assert count_macs(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 28, 28)) == 28 * 28 * 8 * 3 * 9
    assert count_macs(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4), (2, 4, 8, 8)) == 2 * 4 * 4 * 8 * 9
    assert count_macs(nn.ReLU(), (1, 5)) == 0
    assert count_macs(mlp((4, 2)).double(), (1, 4)) == 8


def test_macs_leave_the_network_as_it_was():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    net.train()
    net[2].eval()
    modes, state = [m.training for m in net.modules()], {k: v.clone() for k, v in net.state_dict().items()}
    assert count_macs(net, (1, 4)) == 16
    assert [m.training for m in net.modules()] == modes == [True, True, True, False]
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_macs_put_the_modes_back_when_the_shape_does_not_fit():
    net = mlp((4, 2)).train()
    with pytest.raises(RuntimeError):
        count_macs(net, (1, 5))
    assert net.training and net[0].training


@pytest.mark.parametrize("shape", [(), (784,), (1, 0), (1, -4), (1, 4.0)])
def test_bad_input_shape(shape):
    with pytest.raises(ValueError, match="batch axis"):
        count_macs(mlp((4, 2)), shape)
