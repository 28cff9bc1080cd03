"""mask_noise: what holds for every draw, edge cases, repeats of a seed, expectations, bad input."""
import numpy as np
import pytest
import torch

from bc_clust.augment import mask_noise


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(7,), (5, 12), (4, 6, 6), (3, 1, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_entry_is_kept_or_zero(shape, dtype):
    x = torch.randn(shape, generator=seeded(1)).to(dtype) + 3
    before = x.clone()
    out = mask_noise(x, 0.5, seeded(2))
    assert out.shape == x.shape and out.dtype == dtype and out.device == x.device
    assert ((out == x) | (out == 0)).all()
    assert torch.equal(x, before) and out.data_ptr() != x.data_ptr()


def test_p_zero_is_the_identity_in_a_new_tensor():
    x = torch.randn(50, 20)
    out = mask_noise(x, 0)
    assert torch.equal(out, x)
    out[0, 0] = 99
    assert x[0, 0] != 99


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_share_of_zeros_is_p(p):
    x = torch.ones(400, 500)
    share = (mask_noise(x, p, seeded(0)) == 0).double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5


def test_survivors_are_not_rescaled():
    out = mask_noise(torch.full((100, 100), 0.25), 0.6, seeded(0))
    assert set(out.unique().tolist()) == {0.0, 0.25}


def test_each_entry_has_a_draw_of_its_own():
    """Neither whole rows, nor whole columns, nor one mask for all images."""
    masked = (mask_noise(torch.ones(200, 10, 10), 0.5, seeded(0)) == 0).double()
    assert len({tuple(m.flatten().tolist()) for m in masked}) == 200
    flat = masked.reshape(200, -1).numpy() - 0.5
    correlation = flat.T @ flat / (200 * 0.25)
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 6 / 200**0.5


def test_the_generator_decides():
    x = torch.ones(30, 30)
    assert torch.equal(mask_noise(x, 0.4, seeded(3)), mask_noise(x, 0.4, seeded(3)))
    assert not torch.equal(mask_noise(x, 0.4, seeded(3)), mask_noise(x, 0.4, seeded(4)))
    generator = seeded(3)
    assert not torch.equal(mask_noise(x, 0.4, generator), mask_noise(x, 0.4, generator))


def test_with_a_generator_the_global_one_stays_where_it_is():
    torch.manual_seed(0)
    expected = torch.rand(5)
    torch.manual_seed(0)
    mask_noise(torch.ones(10), 0.4, seeded(1))
    assert torch.equal(torch.rand(5), expected)


def test_without_a_generator_the_global_seed_decides():
    torch.manual_seed(5)
    first = mask_noise(torch.ones(40), 0.5)
    torch.manual_seed(5)
    assert torch.equal(first, mask_noise(torch.ones(40), 0.5))


def test_masked_infinite_and_nan_entries_become_zero():
    out = mask_noise(torch.full((1000,), float("inf")), 0.5, seeded(0))
    assert not out.isnan().any() and (out == 0).any()


def test_gradient_passes_where_the_input_was_kept():
    x = torch.ones(50, requires_grad=True)
    out = mask_noise(x, 0.5, seeded(0))
    out.sum().backward()
    assert torch.equal(x.grad, (out != 0).float())


@pytest.mark.parametrize("p", [-0.01, 1, 1.0, 1.5, float("nan"), None, "0.3", True])
def test_probability_outside_the_range(p):
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        mask_noise(torch.ones(3), p)


@pytest.mark.parametrize("x", [np.ones(3, np.float32), torch.ones(3, dtype=torch.uint8), torch.ones(3, dtype=torch.long), [1.0]])
def test_input_that_is_no_float_tensor(x):
    with pytest.raises(TypeError, match="floating-point tensor"):
        mask_noise(x, 0.1)


def test_generator_on_another_device():
    with pytest.raises(ValueError, match="generator is on cpu but x on meta"):
        mask_noise(torch.ones(3, device="meta"), 0.1, seeded(0))


@pytest.mark.gpu
def test_on_the_gpu():
    x = torch.ones(1000, 100, device="cuda")
    generator = torch.Generator(device="cuda")
    out = mask_noise(x, 0.3, generator.manual_seed(0))
    assert out.device == x.device and abs((out == 0).float().mean().item() - 0.3) < 0.01
    assert torch.equal(out, mask_noise(x, 0.3, generator.manual_seed(0)))
    with pytest.raises(ValueError, match="generator is on cpu"):
        mask_noise(x, 0.3, seeded(0))
