"""ArcFace: the loss against a naive version, another library, finite differences, and at the points where it could break."""
import math
import re

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from bc_clust.arcface import add_margin, arcface_logits, arcface_loss, class_cosines

M = 0.5


def circle(*angles, dtype=torch.float64):
    "Unit vectors at angles in radians."
    angle = torch.tensor(angles, dtype=dtype)
    return torch.stack([angle.cos(), angle.sin()], 1)


def values_and_gradients(loss, Z, W):
    Z, W = Z.clone().requires_grad_(), W.clone().requires_grad_()
    value = loss(Z, W)
    return value.detach(), *torch.autograd.grad(value, (Z, W))


# --- geometry ------------------------------------------------------------------------------------------------------

def test_cosines_by_hand_whatever_the_lengths():
    third = math.pi / 3
    cosine = class_cosines(5 * circle(0, third, math.pi), torch.tensor([[0.2], [9.0]]) * circle(0, 2 * third))
    expected = torch.tensor([[1, -0.5], [0.5, 0.5], [-1, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(cosine, expected)


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5, 1.5])
def test_margin_is_added_to_the_angle_up_to_pi_minus_m(margin):
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    moved, before = add_margin(theta.cos(), margin), theta < math.pi - margin
    np.testing.assert_allclose(moved[before], torch.cos(theta + margin)[before], atol=1e-7)
    beyond = theta.cos() - margin * math.sin(margin)
    np.testing.assert_allclose(moved[~before], beyond[~before], rtol=1e-14)
    assert (moved.diff() <= 0).all(), "never rises with the angle"


@pytest.mark.parametrize("margin", [0.2, 0.5, 1.0])
def test_the_branch_is_at_pi_minus_m(margin):
    edge = math.pi - margin
    below, above = add_margin(torch.tensor([edge - 1e-6, edge + 1e-6], dtype=torch.float64).cos(), margin)
    assert math.isclose(below, -1, abs_tol=1e-9)
    assert math.isclose(above, -math.cos(margin) - margin * math.sin(margin), abs_tol=1e-5)


def test_without_margin_nothing_changes():
    cosine = torch.cat([torch.linspace(-1, 1, 1001), torch.tensor([1.0000001, -1.0000001])])
    assert torch.equal(add_margin(cosine, 0), cosine)


def test_only_the_own_class_gets_the_margin():
    Z, W = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).double()
    y = torch.tensor([3, 0, 2, 0])
    logits, cosine = arcface_logits(Z, W, y, M, 7.0), class_cosines(Z, W)
    own = F.one_hot(y, 4).bool()
    torch.testing.assert_close(logits[~own], 7 * cosine[~own], rtol=0, atol=0)
    torch.testing.assert_close(logits[own], 7 * torch.cos(cosine[own].acos() + M))


# --- values --------------------------------------------------------------------------------------------------------

def test_losses_by_hand():
    W, own = circle(0, 2.0), torch.tensor([0])
    assert math.isclose(arcface_loss(circle(1.0), W, own, 0.0), math.log(2))
    assert math.isclose(arcface_loss(circle(1.0 - M / 2), W, own, M), math.log(2), rel_tol=1e-9)
    by_hand = math.log(1 + math.exp(8 * (math.cos(1.3) - math.cos(0.7 + M))))
    assert math.isclose(arcface_loss(circle(0.7), W, own, M, 8.0), by_hand, rel_tol=1e-12)
    beyond = math.log(1 + math.exp(8 * (math.cos(0.9) - math.cos(2.9) + M * math.sin(M))))
    assert math.isclose(arcface_loss(circle(2.9), W, own, M, 8.0), beyond, rel_tol=1e-12)


def naive(Z, W, y, m, s):
    losses = []
    for z, c in zip(Z, y):
        theta = [torch.acos(z @ w / z.norm() / w.norm()) for w in W]
        own = torch.cos(theta[c] + m) if theta[c] < math.pi - m else torch.cos(theta[c]) - m * math.sin(m)
        logits = torch.stack([own if j == c else torch.cos(t) for j, t in enumerate(theta)])
        losses.append(torch.logsumexp(s * logits, 0) - s * own)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("margin, scale", [(0.0, 1.0), (0.3, 8.0), (0.5, 30.0), (1.2, 64.0)])
def test_value_and_gradients_of_the_naive_version(margin, scale):
    Z, W, y = oracle_input()
    ours = values_and_gradients(lambda Z, W: arcface_loss(Z, W, y, margin, scale), Z, W)
    theirs = values_and_gradients(lambda Z, W: naive(Z, W, y, margin, scale), Z, W)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


# Values of another implementation (pytorch-metric-learning 2.9.0, ArcFaceLoss with margin=math.degrees(0.5), scale=4,
# float64) for the input below. Row 3 lies at 178.8 degrees from its class, beyond pi - m.
ORACLE_LOSS, ORACLE_LOSS_30 = 3.947985803534834, 28.345845683279904
ORACLE_GRAD_Z = [[-0.157995704, 0.041034570, 0.161809779, 0.160596748], [0.352731085, 0.365359349, 0.207971356, -0.025610625],
                 [-0.128302229, -0.152890160, -0.203180457, -0.116682389], [-0.033667021, -0.007076526, 0.030488805, 0.059666308],
                 [0.156187783, 0.192508824, 0.136041068, -0.045409466], [-0.013451678, 0.014977500, 0.003845060, 0.001123924]]
ORACLE_GRAD_W = [[0.424888394, -0.313510963, -0.360254398, 0.245363034], [0.031462953, -0.059984037, 0.118971388, 0.170496226],
                 [-0.212423758, 0.220988810, 0.030076809, -0.514324441]]


def oracle_input():
    i = torch.arange(24, dtype=torch.float64).reshape(6, 4)
    Z = torch.sin(1.3 * i) * (1 + i / 10)
    W = torch.cos(0.7 * torch.arange(12, dtype=torch.float64).reshape(3, 4))
    Z[3] = -2 * W[2] + 0.05 * Z[0]
    return Z, W, torch.tensor([0, 1, 2, 2, 1, 0])


def test_stored_values_of_pytorch_metric_learning():
    Z, W, y = oracle_input()
    value, grad_Z, grad_W = values_and_gradients(lambda Z, W: arcface_loss(Z, W, y, 0.5, 4.0), Z, W)
    assert math.isclose(value, ORACLE_LOSS, rel_tol=1e-12)
    np.testing.assert_allclose(grad_Z, ORACLE_GRAD_Z, atol=1e-9)
    np.testing.assert_allclose(grad_W, ORACLE_GRAD_W, atol=1e-9)
    assert math.isclose(arcface_loss(Z, W, y, 0.5, 30.0), ORACLE_LOSS_30, rel_tol=1e-12)


@pytest.mark.parametrize("margin, scale", [(0.0, 8.0), (0.5, 4.0), (0.5, 30.0), (1.2, 64.0)])
def test_live_against_pytorch_metric_learning(margin, scale):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    Z, W, y = oracle_input()
    other = losses.ArcFaceLoss(len(W), W.shape[1], margin=math.degrees(margin), scale=scale)  # it takes degrees

    def theirs(Z, W):
        del other.W
        other.W = W.T  # a column a class
        return other(Z, y)

    other.cast_types = lambda dtype, device: None  # would write into W
    for a, b in zip(values_and_gradients(lambda Z, W: arcface_loss(Z, W, y, margin, scale), Z, W), values_and_gradients(theirs, Z, W)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_normalised_softmax_is_margin_zero():
    Z, W, y = oracle_input()
    expected = F.cross_entropy(16 * F.normalize(Z) @ F.normalize(W).T, y)
    torch.testing.assert_close(arcface_loss(Z, W, y, margin=0, scale=16), expected, rtol=1e-12, atol=0)


def test_lengths_do_not_count_and_a_gradient_never_stretches():
    Z, W, y = oracle_input()
    torch.testing.assert_close(arcface_loss(3 * Z, W / 7, y), arcface_loss(Z, W, y), rtol=1e-12, atol=0)
    _, grad_Z, grad_W = values_and_gradients(lambda Z, W: arcface_loss(Z, W, y), Z, W)
    for gradient, vector in ((grad_Z, Z), (grad_W, W)):
        assert gradient.norm() > 0.1
        np.testing.assert_allclose((gradient * vector).sum(1), 0, atol=1e-12)


def test_a_larger_margin_costs_more_up_to_the_accepted_end():
    Z, W, y = oracle_input()
    values = [arcface_loss(Z, W, y, m).item() for m in (0, 0.2, 0.5, 1.0, 1.57)]
    assert values == sorted(values) and values[0] < values[1]


def test_class_weights_count_images():
    Z, W, y = oracle_input()
    rows = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 4, 5, 5, 5])  # class 0 three times, class 2 twice
    weight = torch.tensor([3, 1, 2])
    torch.testing.assert_close(arcface_loss(Z, W, y, weight=weight), arcface_loss(Z[rows], W, y[rows]))
    torch.testing.assert_close(arcface_loss(Z, W, y, weight=weight / 10), arcface_loss(Z, W, y, weight=weight))
    per_image = F.cross_entropy(arcface_logits(Z, W, y), y, reduction="none")
    only_class_1 = arcface_loss(Z, W, y, weight=torch.tensor([0, 1, 0]))
    torch.testing.assert_close(only_class_1, per_image[y == 1].mean())


# --- gradients -----------------------------------------------------------------------------------------------------

# Angles to the own class: near 0, ordinary, on both sides of pi - m (where the value jumps), near pi.
ANGLES = [1e-3, 0.05, 0.8, 2.0, math.pi - M - 1e-4, math.pi - M + 1e-4, math.pi - 1e-3]


@pytest.mark.parametrize("theta", ANGLES)
def test_gradients_are_those_of_finite_differences(theta):
    others = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    Z, W = 1.7 * F.pad(circle(0.3 + theta), (0, 2)), torch.cat([0.6 * F.pad(circle(0.3), (0, 2)), others])
    assert math.isclose(class_cosines(Z, W)[0, 0].acos(), theta, rel_tol=1e-6)
    assert torch.autograd.gradcheck(lambda Z, W: arcface_loss(Z, W, torch.tensor([0]), M, 4.0), (Z.requires_grad_(), W.requires_grad_()),
                                    eps=1e-7, atol=1e-5, rtol=1e-4)


def test_gradients_with_weights_and_many_rows():
    Z, W, y = oracle_input()
    weight = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda Z, W: arcface_loss(Z, W, y, M, 8.0, weight), (Z.requires_grad_(), W.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turn", [0.0, 0.3, 0.7, 2.2])  # at some of them rounding makes the cosine larger than 1
def test_exactly_at_zero_and_pi_the_own_class_has_no_pull(dtype, turn):
    w = torch.cat([circle(turn, dtype=dtype), torch.zeros(1, 1, dtype=dtype)], 1)
    Z = torch.cat([w, 3 * w, -w, -0.5 * w]).requires_grad_()
    add_margin(class_cosines(Z, w), M).sum().backward()
    assert torch.isfinite(Z.grad).all()
    limit = 0.1 if dtype == torch.float32 else 1e-4  # rounding of the cosine, over the smallest sine
    assert Z.grad.abs().max() < limit


def test_a_cosine_above_one_gives_numbers():
    cosine = torch.tensor([1 + 2e-7, 1.0, -1.0, -1 - 2e-7], requires_grad=True)
    moved = add_margin(cosine, M)
    moved.sum().backward()
    assert torch.isfinite(moved).all() and torch.isfinite(cosine.grad).all()
    np.testing.assert_allclose(moved.detach(), [math.cos(M)] * 2 + [-1 - M * math.sin(M)] * 2, atol=2e-4)


@pytest.mark.parametrize("scale", [1.0, 30.0, 64.0, 1000.0])
def test_float32_is_finite_on_the_whole_circle(scale):
    theta = torch.cat([torch.linspace(0, 2 * math.pi, 1441), torch.tensor([1e-8, 1e-4, math.pi - M, math.pi - 1e-4])])
    Z = torch.stack([theta.cos(), theta.sin()], 1).requires_grad_()
    W = circle(0, math.pi, dtype=torch.float32).requires_grad_()
    value = arcface_loss(Z, W, torch.zeros(len(Z), dtype=torch.int64), M, scale)
    value.backward()
    assert all(torch.isfinite(t).all() for t in (value, Z.grad, W.grad))


def test_float32_follows_float64():
    Z, W, y = oracle_input()
    exact = values_and_gradients(lambda Z, W: arcface_loss(Z, W, y), Z, W)
    for a, b in zip(values_and_gradients(lambda Z, W: arcface_loss(Z, W, y), Z.float(), W.float()), exact):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def test_a_row_of_zeros_stays_finite():
    Z, W = torch.zeros(2, 3, requires_grad=True), torch.cat([torch.eye(3), torch.zeros(1, 3)]).requires_grad_()
    value = arcface_loss(Z, W, torch.tensor([0, 3]), 0.0, 10.0)
    value.backward()
    assert math.isclose(value.item(), math.log(4), rel_tol=1e-6), "at a right angle to all four"
    assert Z.grad.abs().max() < 100 and W.grad.abs().max() < 100


# --- precision, devices --------------------------------------------------------------------------------------------

def test_float32_inside_under_autocast():
    torch.manual_seed(0)
    layer, X, W, y = torch.nn.Linear(5, 4), torch.randn(6, 5), torch.randn(3, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        Z = layer(X)
        inside, logits = arcface_loss(Z, W, y), arcface_logits(Z, W, y)
    assert Z.dtype == torch.bfloat16 and inside.dtype == logits.dtype == torch.float32
    assert torch.equal(inside, arcface_loss(Z.float(), W, y)), "the very same as in float32"
    inside.backward()
    assert layer.weight.grad.dtype == torch.float32 and torch.isfinite(layer.weight.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_input_is_raised_to_float32(dtype):
    Z, W, y = oracle_input()
    Z, W = Z.to(dtype), W.to(dtype)
    assert torch.equal(arcface_loss(Z, W, y), arcface_loss(Z.float(), W.float(), y))
    assert arcface_loss(Z, W.double(), y).dtype == torch.float64


def test_same_bits_twice():
    Z, W, y = oracle_input()
    first, second = (values_and_gradients(lambda Z, W: arcface_loss(Z, W, y), Z.float(), W.float()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


def test_on_a_gpu_no_number_is_read():
    """Fake tensors have a device and a shape and no numbers: reading one, for which a real GPU would have to wait, is an error."""
    with FakeTensorMode():
        Z, W, weight = torch.ones(4, 5, device="cuda"), torch.ones(3, 5, device="cuda"), torch.ones(3, device="cuda")
        y = torch.zeros(4, dtype=torch.int64, device="cuda")
        assert arcface_loss(Z, W, y, weight=weight).shape == ()
        with pytest.raises(RuntimeError):
            bool(y.min() >= 0)


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_and_the_values_agree():
    Z, W, y = oracle_input()
    expected = values_and_gradients(lambda Z, W: arcface_loss(Z, W, y, weight=torch.ones(3)), Z, W)
    Z, W, y, weight = Z.cuda(), W.cuda(), y.cuda(), torch.ones(3, device="cuda")
    values_and_gradients(lambda Z, W: arcface_loss(Z, W, y, weight=weight), Z, W)  # the first call sets up libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = values_and_gradients(lambda Z, W: arcface_loss(Z, W, y, weight=weight), Z, W)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-10, atol=1e-12)


# --- bad input -----------------------------------------------------------------------------------------------------

GOOD = dict(Z=torch.ones(4, 5), W=torch.ones(3, 5), y=torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("wrong, error, message", [
    (dict(Z=np.ones((4, 5))), TypeError, "Z is a ndarray; give a torch tensor (n, d)"),
    (dict(y=[0, 1, 2, 0]), TypeError, "y is a list; give a torch tensor (n,)"),
    (dict(Z=torch.ones(4, 1, 5)), ValueError, "Z has shape (4, 1, 5); it has to be (n, d)"),
    (dict(Z=torch.ones(0, 5), y=torch.ones(0).long()), ValueError, "Z has shape (0, 5)"),
    (dict(W=torch.ones(5)), ValueError, "W has shape (5,); it has to be (k, d)"),
    (dict(y=torch.zeros(4, 3).long()), ValueError, "y has shape (4, 3); it has to be (n,)"),
    (dict(W=torch.ones(3, 6)), ValueError, "Z has 5 columns and W has 6"),
    (dict(W=torch.ones(5, 3)), ValueError, "W looks transposed; give W.T."),
    (dict(y=torch.tensor([0, 1])), ValueError, "y has 2 labels for the 4 rows of Z"),
    (dict(y=torch.tensor([0, 1, 2, 0.0])), TypeError, "y has dtype torch.float32; class numbers have to be int64"),
    (dict(y=torch.tensor([0, 1, 2, 0], dtype=torch.int32)), TypeError, "y has dtype torch.int32"),
    (dict(y=torch.tensor([1, 2, 3, 1])), ValueError, "y holds labels from 1 to 3; with the 3 rows of W they have to be 0 to 2."),
    (dict(y=torch.tensor([-1, 1, 2, 1])), ValueError, "y holds labels from -1 to 2"),
    (dict(margin=28.6), ValueError, "margin=28.6: use a number of at least 0 and below pi / 2 = 1.571. It is in radians: 28.6 degrees are 0.499."),
    (dict(margin=math.pi / 2), ValueError, "below pi / 2"),
    (dict(margin=-0.1), ValueError, "margin=-0.1"),
    (dict(margin=math.nan), ValueError, "margin=nan"),
    (dict(margin="0.5"), ValueError, "margin='0.5'"),
    (dict(scale=0.0), ValueError, "scale=0.0: use a number above 0"),
    (dict(scale=-30), ValueError, "scale=-30"),
    (dict(scale=math.inf), ValueError, "scale=inf"),
    (dict(scale=torch.tensor(30.0)), ValueError, "scale=tensor(30.)"),
    (dict(weight=torch.ones(2)), ValueError, "weight is (2,); give a tensor (3,), a number for each class."),
    (dict(weight=[1, 1, 1]), ValueError, "weight is list; give a tensor (3,)"),
])
def test_bad_input_is_refused_at_the_door(wrong, error, message):
    with pytest.raises(error, match=re.escape(message)):
        arcface_loss(**{**GOOD, **wrong})


def test_good_input_is_accepted():
    for settings in (dict(margin=0, scale=1), dict(margin=np.float32(0.5), scale=np.int64(64)), dict(margin=1.57)):
        assert torch.isfinite(arcface_loss(**GOOD, **settings))
