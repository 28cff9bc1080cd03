"""Augmentations: what holds for every draw, edge cases, repeats of a seed, expectations, bad input; torchvision as oracle."""
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from bc_clust import augment as module
from bc_clust.augment import (affine, mask_noise, random_affine, random_blur, random_brightness, random_contrast, random_flip,
                              random_intensity, random_resized_crop, resize, resized_crop, two_views, view)


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
def test_mask_noise_on_the_gpu():
    x = torch.ones(1000, 100, device="cuda")
    generator = torch.Generator(device="cuda")
    out = mask_noise(x, 0.3, generator.manual_seed(0))
    assert out.device == x.device and abs((out == 0).float().mean().item() - 0.3) < 0.01
    assert torch.equal(out, mask_noise(x, 0.3, generator.manual_seed(0)))
    with pytest.raises(ValueError, match="generator is on cpu"):
        mask_noise(x, 0.3, seeded(0))


# ---- what the augmentations of images share ---------------------------------------------------

AUGMENTATIONS = [random_flip, random_affine, random_intensity, random_brightness, random_contrast, random_blur]
each_augmentation = pytest.mark.parametrize("augment", AUGMENTATIONS, ids=lambda f: f.__name__)


def images(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed))


@each_augmentation
@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 9, 14), (5, 1, 8, 8), (5, 3, 14, 9), (1, 7, 7), (6, 5, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_shape_dtype_and_device_stay_and_x_is_not_changed(augment, shape, dtype):
    x = images(*shape).to(dtype)
    before = x.clone()
    out = augment(x, generator=seeded(1))
    assert out.shape == x.shape and out.dtype == dtype and out.device == x.device
    assert torch.equal(x, before) and out.data_ptr() != x.data_ptr()
    assert out.min() >= 0 and out.max() <= 1 + 1e-5


@each_augmentation
def test_the_generator_decides_which_images_change(augment):
    x = images(20, 12, 12)
    torch.manual_seed(0)
    expected = torch.rand(5)
    torch.manual_seed(0)
    first = augment(x, generator=seeded(3))
    assert torch.equal(torch.rand(5), expected), "the global generator was used"
    assert torch.equal(first, augment(x, generator=seeded(3))) and not torch.equal(first, augment(x, generator=seeded(4)))
    generator = seeded(3)
    assert not torch.equal(augment(x, generator=generator), augment(x, generator=generator))
    torch.manual_seed(3)
    assert torch.equal(augment(x), first), "the global seed decides where no generator is given"


@each_augmentation
def test_channels_change_together_and_grey_images_as_with_one_channel(augment):
    x = images(20, 11, 13)
    grey = augment(x, generator=seeded(5))
    colour = augment(x[:, None].repeat(1, 3, 1, 1), generator=seeded(5))
    for c in range(3):
        assert torch.allclose(colour[:, c], grey, atol=1e-6)
    assert torch.allclose(augment(x[:, None], generator=seeded(5))[:, 0], grey, atol=1e-6)


@each_augmentation
def test_precision_does_not_change_the_draw(augment):
    x = images(20, 12, 12)
    for dtype, atol in ((torch.float64, 1e-5), (torch.bfloat16, 0.01)):
        out = augment(x.to(dtype), generator=seeded(6)).float()
        assert torch.allclose(out, augment(x.to(dtype).float(), generator=seeded(6)), atol=atol)


@pytest.mark.parametrize("augment", [random_affine, random_intensity], ids=lambda f: f.__name__)
def test_every_image_has_a_draw_of_its_own(augment):
    out = augment(images(1, 12, 12).repeat(200, 1, 1), generator=seeded(0))
    assert len({image.numpy().tobytes() for image in out}) == 200


@each_augmentation
def test_gradient_passes(augment):
    x = (0.4 + 0.2 * images(4, 8, 8)).requires_grad_()
    augment(x, generator=seeded(0)).sum().backward()
    assert x.grad.shape == x.shape and (x.grad > 0).any(dim=(1, 2)).all()


@each_augmentation
@pytest.mark.parametrize("x", [np.ones((2, 4, 4), np.float32), torch.ones(2, 4, 4, dtype=torch.uint8), torch.ones(2, 4, 4, dtype=torch.long), [1.0]])
def test_images_that_are_no_float_tensor(augment, x):
    with pytest.raises(TypeError, match="give a floating-point tensor, for example"):
        augment(x)


@each_augmentation
@pytest.mark.parametrize("shape", [(), (4,), (4, 4), (1, 2, 3, 4, 4), (0, 4, 4), (2, 0, 4), (2, 0, 4, 4)])
def test_axes_that_are_no_batch_of_images(augment, shape):
    with pytest.raises(ValueError, match=r"give at least one image in a batch \(n, h, w\) or \(n, c, h, w\)"):
        augment(torch.ones(shape))


@each_augmentation
def test_channels_last(augment):
    with pytest.raises(ValueError, match=r"channels last.*movedim\(3, 1\)"):
        augment(torch.ones(2, 8, 8, 3))
    assert augment(torch.ones(2, 3, 8, 4)).shape == (2, 3, 8, 4)


@each_augmentation
def test_generators_that_cannot_serve(augment):
    with pytest.raises(ValueError, match="generator is on cpu but x on meta"):
        augment(torch.ones(2, 4, 4, device="meta"), generator=seeded(0))
    with pytest.raises(TypeError, match="generator is 3; give a torch.Generator"):
        augment(torch.ones(2, 4, 4), generator=3)


@pytest.mark.parametrize("augment, name, most", [
    (random_flip, "p", 1), (random_affine, "degrees", 180), (random_affine, "zoom", 0.9), (random_affine, "shift", 1),
    (random_intensity, "brightness", 1), (random_intensity, "contrast", 1),
    (random_brightness, "strength", 1), (random_brightness, "p", 1), (random_contrast, "strength", 1), (random_contrast, "p", 1),
    (random_blur, "p", 1), *((view, name, 1) for name in ("flip", "vertical_flip", "brightness", "contrast", "contrast_p", "blur"))])
def test_parameters_out_of_range(augment, name, most):
    x = images(3, 6, 6)
    for bad in (-0.01, most + 0.01, float("nan"), float("inf"), None, "0.3", True):
        with pytest.raises(ValueError, match=f"^{name}=.*use a number of at least 0 and at most {most}"):
            augment(x, **{name: bad})
    for right in (0, most):
        assert augment(x, **{name: right}).isfinite().all()


# ---- random_flip ------------------------------------------------------------------------------


def test_flip_keeps_or_mirrors_left_to_right():
    x = images(300, 2, 5, 6)
    out = random_flip(x, 0.5, seeded(1))
    kept, mirrored = ((out == other).flatten(1).all(1) for other in (x, torch.from_numpy(x.numpy()[:, :, :, ::-1].copy())))
    assert (kept ^ mirrored).all() and kept.any() and mirrored.any()
    assert torch.equal(random_flip(x, 0), x)
    assert torch.equal(random_flip(x, 1), torch.stack([TF.hflip(image) for image in x]))


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9])
def test_share_of_mirrored_images_is_p(p):
    x = torch.tensor([0.0, 1.0]).expand(20_000, 1, 2)
    mirrored = random_flip(x, p, seeded(0))[:, 0, 0].double()
    tolerance = 5 * (p * (1 - p) / len(x)) ** 0.5
    assert abs(mirrored.mean().item() - p) < tolerance
    neighbours = ((mirrored[1:] - p) * (mirrored[:-1] - p)).mean().item() / (p * (1 - p))
    assert abs(neighbours) < 5 / len(x) ** 0.5, "neighbours in the batch are not drawn on their own"


def test_flip_is_mirrored_half_the_time_where_nothing_is_said():
    out = random_flip(torch.tensor([0.0, 1.0]).expand(20_000, 1, 2), generator=seeded(0))
    assert abs(out[:, 0, 0].mean().item() - 0.5) < 5 * 0.5 / 20_000**0.5


# ---- affine -----------------------------------------------------------------------------------

PLACES = [(0, 1.0, 0.0, 0.0), (10, 1.0, 0.0, 0.0), (-10, 1.0, 0.0, 0.0), (0, 1.2, 0.0, 0.0), (0, 0.8, 0.0, 0.0),
          (0, 1.0, 0.1, 0.0), (0, 1.0, 0.0, 0.1), (25, 0.8, 0.05, -0.1), (-7, 1.1, -0.03, 0.02), (170, 1.5, 0.2, 0.3)]


def by_torchvision(x, places):
    """Image by image, (n, c, h, w) or (n, h, w)."""
    h, w = x.shape[-2:]
    return torch.stack([
        TF.affine(image if x.ndim == 4 else image[None], angle=angle, translate=[right * w, down * h], scale=zoom, shear=[0.0, 0.0],
                  interpolation=TF.InterpolationMode.BILINEAR).reshape(image.shape)
        for image, (angle, zoom, right, down) in zip(x, places)])


@pytest.mark.parametrize("shape", [(40, 40), (40, 60), (61, 33), (1, 40, 60), (3, 33, 33), (3, 50, 24)])
def test_affine_equals_torchvision_image_by_image(shape):
    x = images(len(PLACES), *shape)
    numbers = torch.tensor(PLACES)
    out = affine(x, numbers[:, 0], numbers[:, 1], numbers[:, 2:])
    difference = (out - by_torchvision(x, PLACES)).flatten(1).abs().amax(1)
    assert (difference < 5e-5).all(), dict(zip(PLACES, difference.tolist()))


def test_random_affine_is_affine_with_four_draws_an_image():
    x = images(30, 20, 30)
    u = 2 * torch.rand(4, 30, generator=seeded(2)) - 1
    out = random_affine(x, 15, 0.2, 0.1, seeded(2))
    assert torch.equal(out, affine(x, 15 * u[0], 1 + 0.2 * u[1], 0.1 * u[2:].T))
    places = zip((15 * u[0]).tolist(), (1 + 0.2 * u[1]).tolist(), *(0.1 * u[2:]).tolist())
    assert torch.allclose(out, by_torchvision(x, places), atol=5e-5)


def test_affine_leaves_the_image_where_there_is_nothing_to_do():
    for x in (images(4, 9, 9), images(4, 3, 8, 13), images(2, 224, 224)):
        n = len(x)
        assert torch.allclose(affine(x, torch.zeros(n), torch.ones(n), torch.zeros(n, 2)), x, atol=5e-5)
        assert torch.allclose(random_affine(x, 0, 0, 0), x, atol=5e-5)


def test_affine_turns_clockwise_moves_right_and_down_and_fills_with_black():
    x = 0.5 + 0.5 * images(3, 8, 8)
    quarter = affine(x, [90, -90, 180], [1, 1, 1], [[0, 0]] * 3)
    for out, image, turns in zip(quarter, x, (-1, 1, 2)):  # numpy counts anticlockwise
        np.testing.assert_allclose(out.numpy(), np.rot90(image.numpy(), turns), atol=1e-5)
    moved = affine(x, [0] * 3, [1] * 3, [[0.25, 0.125]] * 3)  # two columns, one row
    assert torch.allclose(moved[:, 1:, 2:], x[:, :-1, :-2], atol=1e-5)
    assert moved[:, 0].abs().max() < 1e-5 and moved[:, :, :2].abs().max() < 1e-5
    small = affine(x, [0] * 3, [0.5] * 3, [[0, 0]] * 3)
    mean_of_four = x.reshape(3, 4, 2, 4, 2).mean((2, 4))
    assert torch.allclose(small[:, 2:6, 2:6], mean_of_four, atol=1e-5)
    assert small[:, :2].max() < 1e-5 and small[:, :, 6:].max() < 1e-5


def test_affine_enlarges_before_it_moves():
    x = torch.zeros(1, 9, 9)
    x[0, 4, 5] = 1.0  # one to the right of the middle
    out = affine(x, [0], [2], [[1 / 9, 0]])
    assert out[0].argmax().item() == 4 * 9 + 7  # 2 * 1 + 1 to the right


def test_affine_in_full_precision_under_autocast():
    x, numbers = images(len(PLACES), 96, 96), torch.tensor(PLACES)
    expected = affine(x, numbers[:, 0], numbers[:, 1], numbers[:, 2:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = affine(x, numbers[:, 0], numbers[:, 1], numbers[:, 2:])
        assert out.dtype == torch.float32 and torch.equal(out, expected)


def test_affine_of_double_precision_is_as_exact_as_that():
    x = images(2, 30, 40).double()
    out = affine(x, [0, 0], [1, 1], torch.full((2, 2), 0.1, dtype=torch.float64))  # four columns, three rows
    assert out.dtype == torch.float64 and (out[:, 3:, 4:] - x[:, :-3, :-4]).abs().max() < 1e-12


@pytest.mark.parametrize("name, bad, message", [
    ("angle", torch.zeros(2), r"angle has shape \(2,\); give \(3,\)"),
    ("angle", 10.0, r"angle has shape \(\); give \(3,\)"),
    ("zoom", torch.ones(3, 1), r"zoom has shape \(3, 1\); give \(3,\)"),
    ("shift", torch.zeros(3), r"shift has shape \(3,\); give \(3, 2\)"),
    ("shift", torch.zeros(2, 3), r"shift has shape \(2, 3\); give \(3, 2\)"),
    ("angle", torch.tensor([0.0, float("nan"), 0.0]), "angle holds .*finite numbers"),
    ("shift", torch.full((3, 2), float("inf")), "shift holds .*finite numbers"),
    ("zoom", torch.tensor([1.0, 0.0, 1.0]), "zoom holds 0 to 1; give finite numbers above 0"),
    ("zoom", torch.tensor([1.0, -1.0, 1.0]), "zoom holds -1 to 1; give finite numbers above 0")])
def test_affine_refuses_bad_parameters(name, bad, message):
    given = {"angle": torch.zeros(3), "zoom": torch.ones(3), "shift": torch.zeros(3, 2), name: bad}
    with pytest.raises(ValueError, match=message):
        affine(images(3, 6, 6), **given)


def test_affine_refuses_what_is_no_batch():
    with pytest.raises(TypeError, match="floating-point tensor"):
        affine(torch.ones(2, 4, 4, dtype=torch.uint8), [0, 0], [1, 1], [[0, 0]] * 2)
    with pytest.raises(ValueError, match="give at least one image"):
        affine(torch.ones(4, 4), [0] * 4, [1] * 4, [[0, 0]] * 4)


# ---- random_affine ----------------------------------------------------------------------------


def recovered(n, **settings):
    """Angle, zoom and moves of `n` draws, read from images whose greys are positions (0 in the middle, in sides)."""
    side, first, last = 64, 24, 39
    place = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    x = torch.stack([place.expand(side, side), place[:, None].expand(side, side)]).expand(n, 2, side, side)
    out = random_affine(x, generator=seeded(0), **settings).numpy() - 0.5
    run = (last - first) / side
    to_right = (out[:, :, first, last] - out[:, :, first, first]) / run  # columns of R^T / z
    to_down = (out[:, :, last, first] - out[:, :, first, first]) / run
    matrix = np.stack([to_right, to_down], axis=2)
    middle = out[:, :, [first, last], [first, last]].mean(2)
    angle = np.degrees(np.arctan2(-matrix[:, 1, 0], matrix[:, 0, 0]))
    zoom = np.linalg.det(matrix) ** -0.5
    shift = -np.linalg.solve(matrix, middle[:, :, None])[:, :, 0]
    return {"degrees": angle, "zoom": zoom - 1, "right": shift[:, 0], "down": shift[:, 1]}


@pytest.mark.parametrize("settings", [{}, {"degrees": 3, "zoom": 0.2, "shift": 0.1}, {"degrees": 20, "zoom": 0.05, "shift": 0.02}])
def test_random_affine_draws_uniformly_from_its_ranges(settings):
    n, found = 2000, recovered(2000, **settings)
    full = {"degrees": 10, "zoom": 0.1, "shift": 0.05, **settings}
    for name, values in found.items():
        most = full.get(name, full["shift"])
        share = values / most
        assert np.abs(share).max() < 1 + 1e-3, f"{name} beyond its range"
        assert share.min() < -0.99 and share.max() > 0.99, f"{name} does not reach its ends"
        assert abs(share.mean()) < 5 / 3**0.5 / n**0.5, f"{name} leans to one side"
        assert abs((share**2).mean() - 1 / 3) < 5 * (4 / 45) ** 0.5 / n**0.5, f"{name} is not uniform"
    correlation = np.corrcoef([*found.values()]) - np.eye(4)
    assert np.abs(correlation).max() < 5 / n**0.5, "the four numbers of an image are not drawn on their own"


@pytest.mark.parametrize("name", ["degrees", "zoom", "shift"])
def test_each_part_of_random_affine_alone(name):
    found = recovered(50, **{"degrees": 0, "zoom": 0, "shift": 0, name: 0.1})
    for key, values in found.items():
        moves = key == name or (name == "shift" and key in ("right", "down"))
        assert (np.abs(values) > 1e-3).any() if moves else np.abs(values).max() < 1e-4, key


# ---- random_intensity -------------------------------------------------------------------------


def test_intensity_is_a_factor_and_an_offset():
    x = torch.tensor([0.4, 0.6]).expand(5000, 1, 2).double()
    out = random_intensity(x, 0.1, 0.2, seeded(0))[:, 0].numpy()
    factor = (out[:, 1] - out[:, 0]) / 0.2
    offset = out[:, 0] - 0.4 * factor
    for name, share in (("factor", (factor - 1) / 0.2), ("offset", offset / 0.1)):
        assert np.abs(share).max() < 1 + 1e-5 and share.min() < -0.99 and share.max() > 0.99, name
        assert abs(share.mean()) < 5 / 3**0.5 / 5000**0.5, name
        assert abs((share**2).mean() - 1 / 3) < 5 * (4 / 45) ** 0.5 / 5000**0.5, name
    assert abs(np.corrcoef(factor, offset)[0, 1]) < 5 / 5000**0.5


def test_intensity_is_one_draw_for_all_pixels_of_an_image():
    x = 0.4 + 0.2 * images(10, 3, 6, 5)
    out = random_intensity(x, generator=seeded(0))
    for before, after in zip(x.flatten(1).double(), out.flatten(1).double()):
        fit = np.polyfit(before, after, 1)
        np.testing.assert_allclose(np.polyval(fit, before), after, atol=1e-6)


@pytest.mark.parametrize("brightness, contrast", [(0.1, 0.2), (0.3, 0), (0, 0.3)])
def test_expectation_and_spread_of_the_brightness(brightness, contrast):
    n, grey = 20_000, 0.5
    out = random_intensity(torch.full((n, 1, 1), grey), brightness, contrast, seeded(0)).double()
    sd = (((grey * contrast) ** 2 + brightness**2) / 3) ** 0.5
    assert abs(out.mean().item() - grey) < 5 * sd / n**0.5
    assert abs(out.std().item() / sd - 1) < 0.03


def test_intensity_clips_to_black_and_white():
    x = torch.tensor([0.0, 0.1, 0.9, 1.0]).expand(2000, 1, 4)
    out = random_intensity(x, 0.5, 0.5, seeded(0))
    assert out.min() == 0 and out.max() == 1
    assert abs((out[:, 0, 0] == 0).double().mean().item() - 0.5) < 5 * 0.5 / 2000**0.5, "half of the offsets are below 0"
    assert torch.equal(random_intensity(x, 0, 0), x)


# ---- crops ------------------------------------------------------------------------------------


def crop_by_torchvision(x, box, size):
    """Image by image, (n, h, w) or (n, c, h, w)."""
    return torch.stack([TF.resized_crop(image if x.ndim == 4 else image[None], *numbers, [size, size], antialias=True).reshape(*image.shape[:-2], size, size)
                        for image, numbers in zip(x, torch.as_tensor(box).tolist())])


def boxes_within(n, h, w, seed=0):
    """Boxes of every size and place, the whole image and single pixels in the corners among them."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, h + 1, n), rng.integers(1, w + 1, n)
    box = np.stack([rng.integers(0, h - height + 1), rng.integers(0, w - width + 1), height, width], axis=1)
    box[:3] = [0, 0, h, w], [h - 1, w - 1, 1, 1], [0, 0, 1, w]
    return torch.from_numpy(box)


@pytest.mark.parametrize("shape, n, size", [
    ((28, 28), 60, 32), ((28, 28), 60, 28), ((32, 32), 60, 32), ((224, 224), 40, 32), ((224, 224), 12, 224), ((512, 512), 12, 32),
    ((512, 512), 6, 96), ((40, 64), 60, 17), ((1, 50, 30), 40, 32), ((3, 33, 90), 40, 24), ((5, 7), 40, 64), ((1, 9), 20, 5), ((64, 64), 20, 1)])
def test_resized_crop_equals_torchvision_image_by_image(shape, n, size):
    x, box = images(n, *shape), boxes_within(n, *shape[-2:])
    out = resized_crop(x, box, size)
    assert out.shape == (n, *shape[:-2], size, size)
    difference = (out - crop_by_torchvision(x, box, size)).flatten(1).abs().amax(1)
    assert difference.max() < 1e-5, dict(zip(map(tuple, box.tolist()), difference.tolist()))


@pytest.mark.parametrize("shape", [(32, 32), (28, 28), (224, 224), (3, 30, 50)])
def test_resize_is_the_crop_of_the_whole_image(shape):
    x = images(5, *shape)
    whole = torch.tensor([[0, 0, *shape[-2:]]] * 5)
    assert torch.allclose(resize(x, 32), resized_crop(x, whole, 32), atol=1e-6)
    assert torch.allclose(resize(x, 32), crop_by_torchvision(x, whole, 32), atol=1e-5)
    assert torch.allclose(resize(images(4, 32, 32), 32), images(4, 32, 32), atol=1e-6), "nothing to do"


def test_a_crop_sees_nothing_outside_its_box():
    x = torch.full((20, 60, 50), float("1e6"))
    box = boxes_within(20, 60, 50, seed=1)
    for image, (top, left, height, width) in zip(x, box.tolist()):
        image[top:top + height, left:left + width] = 0.25
    assert (resized_crop(x, box, 16) - 0.25).abs().max() < 1e-6


def test_double_precision_is_as_exact_as_that():
    x, box = images(10, 60, 50).double(), boxes_within(10, 60, 50)
    out = resized_crop(x, box, 16)
    assert out.dtype == torch.float64 and (out - crop_by_torchvision(x, box, 16)).abs().max() < 1e-12


@pytest.mark.parametrize("box, message", [
    (torch.zeros(3, 4), "dtype torch.float32; give integers"), (torch.ones(2, 4, dtype=torch.long), r"shape \(2, 4\)"),
    ([0, 0, 4, 4], r"shape \(4,\).*give integers \(3, 4\)"), (torch.ones(3, 4, dtype=torch.bool), "dtype torch.bool"),
    ([[0, 0, 0, 4]] * 3, "empty or leaves"), ([[-1, 0, 4, 4]] * 3, "empty or leaves"), ([[0, 0, 4, 4], [0, 0, 4, 4], [3, 0, 4, 4]], "6 x 8"),
    ([[0, 5, 4, 4]] * 3, "empty or leaves")])
def test_boxes_that_are_none(box, message):
    with pytest.raises(ValueError, match=message):
        resized_crop(images(3, 6, 8), box, 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16])
def test_boxes_of_small_integers_do_not_overflow(dtype):
    x, box = torch.rand(1, 1, 150, 150), np.array([[100, 100, 50, 50]])
    assert torch.equal(resized_crop(x, box.astype(dtype), 4), resized_crop(x, box, 4))
    with pytest.raises(ValueError, match="leaves its image"):
        resized_crop(x, np.array([[120, 120, 120, 120]], dtype=dtype), 4)


def boxes_of_torchvision(n, h, w, scale, ratio):
    torch.manual_seed(0)
    image = torch.empty(1, h, w)
    return np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(n)])


def boxes_of_ours(n, h, w, scale, ratio):
    return module._draw_boxes(torch.empty(1, 1, 1).expand(n, h, w), scale, ratio, seeded(0)).numpy()


RATIO = (3 / 4, 4 / 3)
# The second to last often needs a second try, the last often all ten.
DRAWS = [(224, 224, (0.5, 0.8), RATIO), (32, 32, (0.5, 0.8), RATIO), (28, 28, (0.08, 1), RATIO), (300, 180, (0.5, 0.8), RATIO),
         (120, 200, (0.5, 0.8), (0.5, 2)), (200, 200, (0.9, 1), RATIO), (90, 240, (0.85, 1), (1, 1.5))]


@pytest.mark.parametrize("h, w, scale, ratio", DRAWS)
def test_boxes_are_distributed_as_those_of_torchvision(h, w, scale, ratio):
    ours, theirs = (draw(6000, h, w, scale, ratio) for draw in (boxes_of_ours, boxes_of_torchvision))
    for name, of in {"area": lambda b: b[:, 2] * b[:, 3], "aspect": lambda b: b[:, 3] / b[:, 2], "top": lambda b: b[:, 0], "left": lambda b: b[:, 1],
                     "height": lambda b: b[:, 2], "width": lambda b: b[:, 3], "row of the centre": lambda b: b[:, 0] + b[:, 2] / 2,
                     "column of the centre": lambda b: b[:, 1] + b[:, 3] / 2,
                     "room above": lambda b: b[:, 0] / np.maximum(h - b[:, 2], 1), "room left": lambda b: b[:, 1] / np.maximum(w - b[:, 3], 1)}.items():
        assert ks_2samp(of(ours), of(theirs)).pvalue > 1e-4, name


@pytest.mark.parametrize("h, w, scale, ratio", DRAWS)
def test_boxes_one_by_one_from_the_same_numbers(h, w, scale, ratio):
    """torchvision's loop over ten tries, written out, is fed the numbers that the batch drew."""
    boxes, u = boxes_of_ours(300, h, w, scale, ratio), torch.rand(22, 300, generator=seeded(0))
    tries = []
    for box, numbers in zip(boxes.tolist(), u.T.double().tolist()):
        for k in range(10):
            area = h * w * (scale[0] + (scale[1] - scale[0]) * numbers[k])
            aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * numbers[10 + k])
            height, width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < height <= h and 0 < width <= w:
                expected = [int(numbers[20] * (h - height + 1)), int(numbers[21] * (w - width + 1)), height, width]
                break
        else:
            k = 10
            height, width = (round(w / ratio[0]), w) if w / h < ratio[0] else (h, round(h * ratio[1])) if w / h > ratio[1] else (h, w)
            expected = [(h - height) // 2, (w - width) // 2, height, width]
        assert box == expected, k
        tries.append(k)
    assert min(tries) == 0 if (h, w) != (90, 240) else max(tries) == 10


@pytest.mark.parametrize("h, w, ratio, expected", [(90, 240, (1, 1), [0, 75, 90, 90]), (240, 91, (2, 3), [97, 0, 46, 91]), (7, 1, (9, 10), [3, 0, 1, 1])])
def test_where_no_try_fits_the_largest_box_in_the_middle_is_taken(h, w, ratio, expected):
    if h != 7:  # torchvision's fallback is empty there
        torch.manual_seed(0)
        assert [*RandomResizedCrop.get_params(torch.empty(1, h, w), [1, 1], list(map(float, ratio)))] == expected
    x = images(20, h, w)
    assert (boxes_of_ours(20, h, w, (1, 1), ratio) == expected).all()
    assert torch.equal(random_resized_crop(x, 8, (1, 1), ratio, seeded(0)), resized_crop(x, [expected] * 20, 8))


def test_random_resized_crop_is_the_crop_of_its_boxes():
    x = images(50, 3, 60, 44)
    box = module._draw_boxes(x, (0.5, 0.8), RATIO, seeded(3))
    assert torch.equal(random_resized_crop(x, 32, generator=seeded(3)), resized_crop(x, box, 32))
    assert torch.allclose(random_resized_crop(x, 32, generator=seeded(3)), crop_by_torchvision(x, box, 32), atol=1e-5)
    assert len({tuple(b) for b in box.tolist()}) > 45, "every image has a box of its own"
    whole = random_resized_crop(x[:, 0, :44], 44, (1, 1), (1, 1), seeded(0))
    assert torch.allclose(whole, x[:, 0, :44], atol=1e-6), "the whole image at its own size"


def test_statistics_of_the_crops_are_those_of_torchvision():
    """One picture with a bright spot and a slope, 1500 random crops by each: mean, spread and the brightest pixel of the crops."""
    place = (torch.arange(64) + 0.5) / 64
    picture = 0.5 * place[:, None] + 0.2 * place**2 + 0.3 * torch.exp(-((place[:, None] - 0.2) ** 2 + (place - 0.3) ** 2) / 0.005)
    ours = random_resized_crop(picture.expand(1500, 64, 64), 32, generator=seeded(0))
    torch.manual_seed(0)
    transform = RandomResizedCrop(32, (0.5, 0.8), RATIO, antialias=True)
    theirs = torch.stack([transform(picture[None])[0] for _ in range(1500)])
    for statistic in (lambda a: a.mean((1, 2)), lambda a: a.flatten(1).std(1), lambda a: a.amax((1, 2)), lambda a: a[:, 3, 5], lambda a: a[:, 16, 16]):
        assert ks_2samp(statistic(ours).numpy(), statistic(theirs).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("settings, message", [
    ({"size": 0}, "size=0: use a whole number of at least 1"), ({"size": 8.0}, "size=8.0"), ({"size": (8, 8)}, "size="), ({"size": True}, "size=True"),
    ({"scale": (0.8, 0.5)}, r"scale is \(0.8, 0.5\); give the smaller number first"), ({"scale": (0, 1)}, "scale=0: use a number above 0 and at most 1"),
    ({"scale": (0.5, 1.1)}, "scale=1.1"), ({"scale": 0.5}, "scale is 0.5; give a pair"), ({"scale": (0.1, 0.2, 0.3)}, "give a pair"),
    ({"scale": (0.5, float("nan"))}, "scale=nan"), ({"ratio": (2, 1)}, "ratio is .*smaller number first"), ({"ratio": (0, 1)}, "ratio=0"),
    ({"ratio": (1, float("inf"))}, "ratio=inf"), ({"ratio": None}, "ratio is None")])
def test_crops_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        random_resized_crop(images(3, 9, 9), **{"size": 8, **settings})


# ---- brightness, contrast, blur ---------------------------------------------------------------


def factors(n, strength, seed):
    """The two numbers an image that brightness and contrast draw: which are changed at p = 0.5, and by which factor."""
    u = torch.rand(2, n, generator=seeded(seed))
    return (u[0] < 0.5).tolist(), (1 + strength * (2 * u[1] - 1)).tolist()


@pytest.mark.parametrize("augment, oracle", [(random_brightness, TF.adjust_brightness), (random_contrast, TF.adjust_contrast)])
@pytest.mark.parametrize("shape", [(12, 17), (1, 12, 17), (3, 12, 17)])
def test_brightness_and_contrast_equal_torchvision_image_by_image(augment, oracle, shape):
    x = images(60, *shape)
    for strength in (0.4, 1):
        chosen, factor = factors(60, strength, 2)
        expected = torch.stack([oracle(image if len(shape) == 3 else image[None], f).reshape(shape) if c else image for image, c, f in zip(x, chosen, factor)])
        atol = 1e-6 if shape[0] != 3 or augment is random_brightness else 1e-4 * strength  # torchvision's luma sums to 0.9999
        assert torch.allclose(augment(x, strength, 0.5, seeded(2)), expected, atol=atol)


@pytest.mark.parametrize("augment, default", [(random_brightness, 0.8), (random_contrast, 0.2), (random_blur, 0.5)])
def test_share_of_changed_images_is_p(augment, default):
    x = images(1, 6, 6, seed=4).repeat(20_000, 1, 1)
    for settings, p in (({}, default), ({"p": 0.35}, 0.35)):
        changed = (augment(x, generator=seeded(0), **settings) != x).flatten(1).any(1).double().mean().item()
        assert abs(changed - p) < 5 * (p * (1 - p) / len(x)) ** 0.5
    assert torch.equal(augment(x[:50], p=0), x[:50]) and (augment(x[:50], p=1) != x[:50]).flatten(1).any(1).all()


@pytest.mark.parametrize("strength", [0.4, 0.15])
def test_factors_are_uniform(strength):
    x = torch.tensor([0.45, 0.55]).expand(4000, 1, 2)
    bright = random_brightness(x, strength, 1, seeded(0))
    contrast = random_contrast(x, strength, 1, seeded(0))
    for factor in (bright[:, 0, 0] / 0.45, (contrast[:, 0, 1] - contrast[:, 0, 0]) / 0.1):
        assert kstest(factor.numpy(), "uniform", (1 - strength, 2 * strength)).pvalue > 1e-4
        assert abs(np.corrcoef(factor[1:], factor[:-1])[0, 1]) < 5 / 4000**0.5, "neighbours are drawn on their own"
    assert torch.allclose(contrast.mean((1, 2)), torch.tensor(0.5), atol=1e-6), "contrast keeps the mean"
    assert torch.allclose(bright[:, 0, 1] / bright[:, 0, 0], torch.tensor(0.55 / 0.45), atol=1e-5), "brightness keeps the ratio of greys"


def test_brightness_and_contrast_clip_and_leave_what_has_nothing_to_change():
    x = images(200, 5, 5)
    for augment in (random_brightness, random_contrast):
        out = augment(x, 1, 1, seeded(0))
        assert out.min() >= 0 and out.max() == 1
        assert torch.allclose(augment(x, 0, 1), x, atol=1e-6)
    assert (random_brightness(torch.zeros(50, 4, 4), 1, 1) == 0).all(), "black stays black"
    even = torch.linspace(0, 1, 50)[:, None, None].expand(50, 4, 4)
    assert torch.allclose(random_contrast(even, 1, 1), even, atol=1e-6), "one grey is its own mean"


@pytest.mark.parametrize("shape, kernel", [((32, 32), 3), ((28, 28), 3), ((40, 64), 5), ((96, 96), 9), ((224, 224), 23), ((3, 60, 61), 7), ((1, 5, 3), 3), ((2, 2), 3)])
def test_blur_equals_torchvision_image_by_image(shape, kernel):
    x, u = images(20, *shape), torch.rand(2, 20, generator=seeded(1))
    sigma = (0.1 + 1.9 * u[1]).tolist()
    expected = torch.stack([TF.gaussian_blur(image if len(shape) == 3 else image[None], [kernel] * 2, [s, s]).reshape(shape) if c < 0.5 else image
                            for image, s, c in zip(x, sigma, u[0])])
    assert torch.allclose(random_blur(x, generator=seeded(1)), expected, atol=1e-5)


def test_blur_keeps_one_grey_and_a_line_of_one_pixel():
    even = torch.linspace(0, 1, 30)[:, None, None].expand(30, 9, 12)
    assert torch.allclose(random_blur(even, p=1), even, atol=1e-6)
    assert torch.allclose(random_blur(images(5, 1, 1), p=1), images(5, 1, 1), atol=1e-6)
    row = random_blur(images(5, 1, 9), (1, 1), 1)
    assert torch.allclose(row, TF.gaussian_blur(images(5, 1, 9).repeat(1, 2, 1), [3, 3], [1.0, 1.0])[:, :1], atol=1e-6)


def test_widths_of_the_blur_are_uniform_and_one_for_both_axes():
    point = torch.zeros(3000, 9, 9)
    point[:, 4, 4] = 1
    out = random_blur(point, (0.5, 1.5), 1, seeded(0)).double()
    for beside in (out[:, 4, 5], out[:, 5, 4]):  # exp(-1 / 2 sigma^2) times the middle
        sigma = (-0.5 / torch.log(beside / out[:, 4, 4])) ** 0.5
        assert kstest(sigma.numpy(), "uniform", (0.5, 1)).pvalue > 1e-4
    assert torch.equal(out[:, 4, 5], out[:, 5, 4])


@pytest.mark.parametrize("sigma, message", [((0, 2), "sigma=0: use a number above 0"), ((-1, 2), "sigma=-1"), ((2, 0.1), "smaller number first"), (1.0, "give a pair"),
                                            ((0.1, float("inf")), "sigma=inf"), ((0.1, "2"), "sigma='2'"), (None, "give a pair")])
def test_widths_out_of_range(sigma, message):
    with pytest.raises(ValueError, match=message):
        random_blur(images(3, 9, 9), sigma)


# ---- views ------------------------------------------------------------------------------------

CROPS = [partial(random_resized_crop, size=16), partial(view, size=16), partial(view, size=16, vertical_flip=0.5, contrast_p=1), lambda x, generator=None: two_views(x, 16, generator)[1]]
each_crop = pytest.mark.parametrize("augment", CROPS, ids=["random_resized_crop", "view", "all of view", "two_views"])


@each_crop
@pytest.mark.parametrize("shape", [(6, 20, 20), (6, 1, 20, 20), (6, 3, 40, 31), (1, 9, 14)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_views_are_square_images_of_the_same_kind(augment, shape, dtype):
    x = images(*shape).to(dtype)
    before = x.clone()
    out = augment(x, generator=seeded(1))
    assert out.shape == (*shape[:-2], 16, 16) and out.dtype == dtype and torch.equal(x, before)
    assert out.min() >= 0 and out.max() <= 1 + 1e-5
    exact = augment(x.double(), generator=seeded(1))
    assert torch.allclose(out.double(), exact, atol={torch.float32: 1e-5, torch.float64: 0}.get(dtype, 0.05)), "the draw depends on the precision"


@each_crop
def test_the_generator_decides_on_views(augment):
    x = images(20, 24, 24)
    torch.manual_seed(3)
    by_global_seed = augment(x)
    first = augment(x, generator=seeded(3))
    assert torch.equal(first, by_global_seed) and torch.equal(first, augment(x, generator=seeded(3)))
    assert not torch.equal(first, augment(x, generator=seeded(4)))
    copies = augment(x[:1].repeat(200, 1, 1), generator=seeded(0))
    assert len({image.numpy().tobytes() for image in copies}) > 150, "every image has a draw of its own; boxes of whole pixels may repeat"


@each_crop
def test_channels_of_a_view_change_together(augment):
    x = images(20, 24, 30)
    grey, colour = augment(x, generator=seeded(5)), augment(x[:, None].repeat(1, 3, 1, 1), generator=seeded(5))
    assert torch.allclose(colour, grey[:, None].expand_as(colour), atol=1e-6)


@each_crop
def test_views_in_full_precision_under_autocast(augment):
    x = images(20, 3, 40, 40)
    expected = augment(x, generator=seeded(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = augment(x, generator=seeded(2))
        assert out.dtype == torch.float32 and torch.equal(out, expected)


@each_crop
def test_views_refuse_what_is_no_batch(augment):
    for bad in (np.ones((2, 20, 20), np.float32), torch.ones(2, 20, 20, dtype=torch.uint8)):
        with pytest.raises(TypeError, match="give a floating-point tensor, for example"):
            augment(bad)
    with pytest.raises(ValueError, match=r"channels last.*movedim\(3, 1\)"):
        augment(torch.ones(2, 20, 20, 3))
    with pytest.raises(ValueError, match="give at least one image"):
        augment(torch.ones(20, 20))
    with pytest.raises(TypeError, match="generator is 3; give a torch.Generator"):
        augment(torch.ones(2, 20, 20), generator=3)


def test_gradient_passes_through_a_view():
    x = (0.4 + 0.1 * images(6, 20, 20)).requires_grad_()
    view(x, 16, contrast_p=1, blur=1, vertical_flip=0.5, generator=seeded(0)).sum().backward()
    assert (x.grad > 0).any(dim=(1, 2)).all()


def test_view_is_its_steps_in_order():
    x, one = images(40, 30, 30), seeded(7)
    step = random_resized_crop(x, 20, (0.3, 0.6), generator=one)
    step = random_flip(random_flip(step, 0.4, one).mT, 0.3, one).mT
    step = random_contrast(random_brightness(step, 0.3, 0.8, one), 0.2, 0.6, one)
    step = random_blur(step, (0.1, 2.0), 0.7, one)
    out = view(x, 20, (0.3, 0.6), 0.4, 0.3, 0.3, 0.2, 0.6, 0.7, seeded(7))
    assert torch.equal(out, step)
    assert torch.equal(out, view(x, 20, [0.3, 0.6], 0.4, 0.3, 0.3, 0.2, 0.6, 0.7, seeded(7))), "settings from JSON are lists"


OFF = {"crop": None, "flip": 0, "vertical_flip": 0, "brightness": 0, "contrast": 0, "blur": 0}


def test_steps_of_a_view_can_be_left_out():
    x = images(40, 24, 24)
    before = torch.random.get_rng_state()
    assert torch.equal(view(x, 16, **OFF), resize(x, 16))
    assert torch.equal(torch.random.get_rng_state(), before), "nothing is drawn for a step that is left out"
    alone = {"crop": ((0.5, 0.8), random_resized_crop(x, 16, (0.5, 0.8), generator=seeded(0))), "flip": (1, resize(x, 16).flip(-1)),
             "vertical_flip": (1, resize(x, 16).flip(-2)), "brightness": (0.4, random_brightness(resize(x, 16), 0.4, 0.8, seeded(0))),
             "contrast": (0.4, random_contrast(resize(x, 16), 0.4, 0.2, seeded(0))), "blur": (1, random_blur(resize(x, 16), p=1, generator=seeded(0)))}
    for name, (value, expected) in alone.items():
        assert torch.equal(view(x, 16, **{**OFF, name: value}, generator=seeded(0)), expected), name
    assert torch.equal(view(x, 16, **{**OFF, "contrast": 0.4, "contrast_p": 0}), resize(x, 16))


def test_two_views_are_drawn_on_their_own_and_row_by_row():
    x, one = images(30, 24, 24), seeded(1)
    first, second = two_views(x, 16, generator=seeded(1), flip=1)
    assert torch.equal(first, view(x, 16, flip=1, generator=one)) and torch.equal(second, view(x, 16, flip=1, generator=one))
    assert (first != second).flatten(1).any(1).all()
    greys = torch.linspace(0.1, 0.9, 30)[:, None, None].expand(30, 24, 24)
    for side in two_views(greys, brightness=0):
        assert side.shape == (30, 32, 32) and torch.allclose(side, greys[:, :1, :1].expand_as(side), atol=1e-6), "row i comes from image i"


def test_a_view_refuses_settings():
    x = images(3, 9, 9)
    for settings, message in (({"size": 0}, "size=0"), ({"crop": (0.8, 0.5)}, r"crop is \(0.8, 0.5\); give the smaller"), ({"crop": 0.5}, "crop is 0.5; give a pair"),
                              ({"crop": (0, 0.5)}, "crop=0"), ({"size": 0, "crop": None}, "size=0")):
        with pytest.raises(ValueError, match=message):
            view(x, **settings)
    with pytest.raises(TypeError, match="colour"):
        two_views(x, colour=1)


# ---- on a GPU ---------------------------------------------------------------------------------


@pytest.mark.gpu
@each_augmentation
def test_augmentations_on_the_gpu(augment):
    x = images(32, 3, 64, 48).cuda()
    generator = torch.Generator(device="cuda")
    out = augment(x, generator=generator.manual_seed(0))
    assert out.device == x.device and out.shape == x.shape
    assert torch.equal(out, augment(x, generator=generator.manual_seed(0)))
    with pytest.raises(ValueError, match="generator is on cpu"):
        augment(x, generator=seeded(0))


@pytest.mark.gpu
def test_affine_on_the_gpu():
    x, numbers = images(len(PLACES), 3, 64, 48), torch.tensor(PLACES)
    expected = affine(x, numbers[:, 0], numbers[:, 1], numbers[:, 2:])
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = affine(x.cuda(), numbers[:, 0], numbers[:, 1], numbers[:, 2:])
    assert torch.allclose(out.cpu(), expected, atol=5e-5)


@pytest.mark.gpu
@each_crop
def test_views_on_the_gpu(augment):
    x, generator = images(32, 3, 64, 48).cuda(), torch.Generator(device="cuda")
    out = augment(x, generator=generator.manual_seed(0))
    assert out.device == x.device and out.shape == (32, 3, 16, 16)
    assert torch.equal(out, augment(x, generator=generator.manual_seed(0)))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.equal(out, augment(x, generator=generator.manual_seed(0)))


@pytest.mark.gpu
def test_resized_crop_on_the_gpu():
    x, box = images(30, 3, 64, 48), boxes_within(30, 64, 48)
    assert torch.allclose(resized_crop(x.cuda(), box.cuda(), 32).cpu(), resized_crop(x, box, 32), atol=1e-5)
