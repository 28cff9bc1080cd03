"""Grad-CAM: against a loop, CAM and the grad-cam library; what it does to a network; the measures by hand; what it refuses."""
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import nn
from torch.nn import functional as F

from bc_clust.data import phantom
from bc_clust.experiments import read_records, run
from bc_clust.gradcam import (
    LOCALISATION, ScoreNetwork, best_maps, centre_map, dealt_out, energy_inside, grad_cam, heat_maps, localisation,
    localisation_scores, marked_rows, pointing_game,
)
from bc_clust.probes import LinearClassifier, SoftmaxClassifier, logistic_regression
from bc_clust.simclr import SimCLR

X = torch.sin(0.7 * torch.arange(128, dtype=torch.float64)).reshape(2, 1, 8, 8)
# grad-cam 1.5.7, GradCAM(network, [body])(X, class 1): row 3 of the second map, scaled to 1 and brought to the 8 pixels of X
LIBRARY = {"mean": [0.7858258485794067, 0.7320360541343689, 0.6244563460350037, 0.6773990988731384, 0.8908641338348389,
                    0.8009366989135742, 0.40761691331863403, 0.21095700562000275],
           "two layers": [0.0, 0.03381941094994545, 0.10145822912454605, 0.10827203094959259, 0.05426081269979477,
                          0.27044135332107544, 0.7568137049674988, 0.9999998211860657]}


def network(ending):
    "A network with weights that are the same everywhere: a body with maps of 4 by 4, and one of two endings."
    body = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.Tanh())
    ends = {"mean": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)],
            "two layers": [nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3)]}
    net = nn.Sequential(body, nn.Sequential(*ends[ending])).double().eval()
    for i, p in enumerate(net.parameters()):
        p.data = torch.sin(torch.arange(p.numel(), dtype=torch.float64) * (1.3 + i) + i).reshape(p.shape)
    return net


def scaled(maps):
    maps = maps - maps.amin((1, 2), keepdim=True)
    return maps / (1e-7 + maps.amax((1, 2), keepdim=True))


def as_the_library(maps):
    "What the library returns: scaled, brought to the size of the input, scaled again."
    return scaled(F.interpolate(scaled(maps)[:, None], (8, 8), mode="bilinear")[:, 0])


# --- the method ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ending", LIBRARY)
@pytest.mark.parametrize("c", [0, 1, 2])
def test_it_is_the_equation(ending, c):
    net = network(ending)
    for n in range(2):
        A = net[0](X[n:n + 1]).detach().requires_grad_()
        net[1](A)[0, c].backward()
        alpha = A.grad[0].mean((1, 2))
        by_loop = torch.relu(sum(alpha[k] * A[0, k] for k in range(4))).detach()
        torch.testing.assert_close(grad_cam(net, net[0], X, c)[n], by_loop)


@pytest.mark.parametrize("ending", LIBRARY)
def test_stored_maps_of_the_library(ending):
    net = network(ending)
    np.testing.assert_allclose(as_the_library(grad_cam(net, net[0], X, 1))[1, 3], LIBRARY[ending], atol=1e-6)


@pytest.mark.parametrize("ending", LIBRARY)
@pytest.mark.parametrize("c", [0, 1, 2])
def test_maps_of_the_library_where_it_is_installed(ending, c):
    library = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is an extra: pip install -e '.[oracles]'")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    net = network(ending)
    theirs = library.GradCAM(model=net, target_layers=[net[0]])(input_tensor=X, targets=2 * [ClassifierOutputTarget(c)])
    np.testing.assert_allclose(as_the_library(grad_cam(net, net[0], X, c)), theirs, atol=1e-6)


def test_with_a_mean_and_a_linear_layer_it_is_cam_and_adds_up_to_the_score():
    net = network("mean")
    A, (w, b) = net[0](X).detach(), net[1][2].parameters()
    added = torch.einsum("ck,nkij->ncij", w, A) / 16
    torch.testing.assert_close(added.sum((2, 3)) + b, net(X))
    for c in range(3):
        torch.testing.assert_close(grad_cam(net, net[0], X, c), torch.relu(added[:, c]).detach())


def test_class_of_the_largest_score_and_a_class_for_each_image():
    net = network("two layers")
    best = net(X).argmax(1)
    every = torch.stack([grad_cam(net, net[0], X, c) for c in range(3)], 1)
    torch.testing.assert_close(grad_cam(net, net[0], X), every[range(2), best])
    torch.testing.assert_close(grad_cam(net, net[0], X, [2, 0]), every[range(2), [2, 0]])
    torch.testing.assert_close(grad_cam(net, net[0], X[1:], 1)[0], every[1, 1], msg="the others of the batch do not matter")


def test_the_network_is_left_as_it_was():
    net = network("mean").requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        heat = grad_cam(net, net[0], X, 0)
    assert heat.shape == (2, 4, 4) and heat.max() > 0 and not heat.requires_grad
    assert not net[0]._forward_hooks and all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    with pytest.raises(ValueError):
        grad_cam(net, net[0], X, 7)
    assert not net[0]._forward_hooks, "also after an error"


def test_a_layer_that_is_changed_in_place_afterwards():
    plain, inplace = (nn.Sequential(network("mean")[0], nn.ReLU(inplace=flag), network("mean")[1]).eval() for flag in (False, True))
    torch.testing.assert_close(grad_cam(inplace, inplace[0], X, 1), grad_cam(plain, plain[0], X, 1))


@pytest.mark.parametrize("x, target, message", [
    (X.long(), None, "torch.int64; give floats"),
    (X[0], None, r"x is a tensor \(1, 8, 8\)"),
    (X[:0], None, "at least one image"),
    ("film", None, "x is str"),
    (X, 3, "target is 3; give a class from 0 to 2"),
    (X, [0, -1], "from 0 to 2"),
    (X, [0, 1, 2], "one for each of the 2 images"),
    (X, 0.5, "target is 0.5"),
    (X, True, "target is True"),
    (X, "malignant", "target is 'malignant'; give columns of the scores"),
])
def test_what_it_refuses(x, target, message):
    net = network("mean")
    with pytest.raises(ValueError, match=message):
        grad_cam(net, net[0], x, target)


def test_networks_and_layers_it_refuses():
    net = network("mean")
    with pytest.raises(ValueError, match="training mode"):
        grad_cam(net.train(), net[0], X)
    net.eval()
    net[1][0].train()
    with pytest.raises(ValueError, match="or a part of it, is in training mode"):
        grad_cam(net, net[0], X)
    net.eval()
    with pytest.raises(ValueError, match=r"the layer gave a Tensor \(2, 3\); choose one"):
        grad_cam(net, net[1], X)
    with pytest.raises(ValueError, match="layer is 'body'; give a part of the network"):
        grad_cam(net, "body", X)
    with pytest.raises(ValueError, match="scores do not depend on the layer: it was not run"):
        grad_cam(net, nn.Identity(), X)
    with pytest.raises(ValueError, match="the network switches gradients off"):
        grad_cam(lambda x: net[1](net[0](x)).detach(), net[0], X)
    twice = nn.ReLU()
    with pytest.raises(ValueError, match="a second time; choose one that is run once"):
        grad_cam(lambda x: twice(twice(x)).mean((2, 3)), twice, X)
    with pytest.raises(ValueError, match=r"the network gives \(2, 4, 4, 4\)"):
        grad_cam(net[0], net[0][0], X)


def test_under_inference_mode():
    net = network("mean")
    expected = grad_cam(net, net[0], X, 1)
    with torch.inference_mode():
        torch.testing.assert_close(grad_cam(net, net[0], X.clone(), 1), expected)


# --- encoders -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def images():
    return phantom(n=40, size=32, task="benign-malignant", random_state=0)


@pytest.fixture(scope="module")
def taught(images):
    return SoftmaxClassifier("resnet18", image_size=16, n_epochs=2, batch_size=16, precision="float32", random_state=0).fit(images.images, images.labels)


@pytest.fixture(scope="module")
def untaught(images):
    return SimCLR("resnet18", image_size=16, n_epochs=1, warmup_epochs=0, batch_size=16, precision="float32", random_state=0).fit(images.images)


def test_score_network_gives_the_estimators_probabilities(taught, images):
    small = taught._small(torch.from_numpy(images.images))
    with torch.no_grad():
        p = ScoreNetwork(taught)(small).softmax(1)
    np.testing.assert_allclose(p, taught.predict_proba(images.images), atol=1e-5)


def test_score_network_of_an_encoder_and_a_classifier(untaught, images):
    h = untaught.transform(images.images)
    classifier = LinearClassifier(n_epochs=3).fit(h, images.labels)
    small = untaught._small(torch.from_numpy(images.images))
    with torch.no_grad():
        p = ScoreNetwork(untaught, classifier)(small).softmax(1)
    np.testing.assert_allclose(p, classifier.predict_proba(h), atol=1e-5)


def test_heat_maps_are_cam_image_by_image(taught, images):
    heat = heat_maps(taught, images.images, target=images.labels)
    assert heat.shape == (40, 2, 2) and heat.dtype == np.float32
    with torch.no_grad():
        small = taught._small(torch.from_numpy(images.images))
        A = taught.backbone_.feature_map((small - torch.tensor(taught.mean_)[:, None, None]) / torch.tensor(taught.std_)[:, None, None])
        cam = torch.relu(torch.einsum("ck,nkij->ncij", taught.classifier_.weight, A) / 4)
    np.testing.assert_allclose(heat, cam[range(40), images.labels], atol=1e-5)
    np.testing.assert_allclose(heat_maps(taught, images.images[7:9], target=1), cam[7:9, 1], atol=1e-5)


def test_more_images_than_a_batch_and_another_size(taught, images):
    many = np.concatenate([images.images, images.images])   # 80, in batches of 64
    heat = heat_maps(taught, many, target=np.concatenate([images.labels, 1 - images.labels]))
    np.testing.assert_allclose(heat[:40], heat_maps(taught, images.images, target=images.labels), atol=1e-6)
    np.testing.assert_allclose(heat[40:], heat_maps(taught, images.images, target=1 - images.labels), atol=1e-6)
    assert heat_maps(taught, images.images[:2], image_size=32).shape == (2, 4, 4)


def test_colour_images():
    colour = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    model = SoftmaxClassifier("resnet18", image_size=16, n_epochs=1, batch_size=6, random_state=0).fit(colour, np.arange(12) % 2)
    assert heat_maps(model, colour).shape == (12, 2, 2)


def test_encoders_it_refuses(taught, untaught, images):
    with pytest.raises(ValueError, match="SimCLR has no classifier of its own"):
        heat_maps(untaught, images.images)
    with pytest.raises(ValueError, match="fitted to 3 features, the encoder gives 512"):
        heat_maps(untaught, images.images, LinearClassifier(n_epochs=1).fit(np.eye(3), [0, 1, 0]))
    with pytest.raises(NotFittedError):
        heat_maps(SimCLR(), images.images)
    with pytest.raises(ValueError, match="target is"):
        heat_maps(taught, images.images, target=2)
    with pytest.raises(ValueError, match="target holds 39 classes for 40 images"):
        heat_maps(taught, images.images, target=images.labels[:39])
    single = LinearClassifier(n_epochs=1).fit(np.zeros((4, 512)), [0, 1, 0, 1])
    single.coef_, single.intercept_ = single.coef_[:1], single.intercept_[:1]
    with pytest.raises(ValueError, match="has one row of weights; give one with a row for each class"):
        heat_maps(untaught, images.images, single)
    with pytest.raises(ValueError):
        heat_maps(taught, images.images, image_size=0)
    with pytest.raises(ValueError, match=r"target is \['benign', .*not names"):
        heat_maps(taught, images.images, target=np.array(["benign", "malignant"])[images.labels])
    Z = untaught.transform(images.images)
    with pytest.raises(NotFittedError):
        ScoreNetwork(untaught, LinearClassifier())
    with pytest.raises(NotFittedError):
        ScoreNetwork(SimCLR(), LinearClassifier(n_epochs=1).fit(Z, images.labels))
    with pytest.raises(ValueError, match="Pipeline is no linear layer on the features; give a fitted LinearClassifier"):
        ScoreNetwork(untaught, logistic_regression(images.labels).fit(Z, images.labels))
    with pytest.raises(ValueError, match="classifier is 'linear'; give a fitted LinearClassifier"):
        ScoreNetwork(untaught, "linear")


def test_a_classifier_of_the_projections_is_refused_though_they_are_as_long_as_the_features(images):
    settings = dict(backbone="resnet18", image_size=16, n_epochs=1, warmup_epochs=0, batch_size=16, random_state=0, projection_dim=512)
    encoder = SimCLR(**settings, output="projection").fit(images.images)
    classifier = LinearClassifier(n_epochs=1).fit(encoder.transform(images.images), images.labels)
    with pytest.raises(ValueError, match="the encoder's output is 'projection', and a map explains the features"):
        heat_maps(encoder, images.images, classifier)


def test_heat_maps_leave_generators_alone_and_run_under_inference_mode(untaught, images):
    classifier = LinearClassifier(n_epochs=2).fit(untaught.transform(images.images), images.labels)
    torch.manual_seed(0)
    expected = heat_maps(untaught, images.images, classifier)
    torch.testing.assert_close(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    with torch.inference_mode():
        np.testing.assert_array_equal(heat_maps(untaught, images.images, classifier), expected)


def test_target_may_be_a_filtered_pandas_column(taught, images):
    column = pd.Series(images.labels)[::-1]
    np.testing.assert_array_equal(heat_maps(taught, images.images[::-1], target=column), heat_maps(taught, images.images, target=images.labels)[::-1])


# --- the measures -------------------------------------------------------------------------------------------------

def test_pointing_game_and_energy_by_hand():
    masks = np.zeros((3, 6, 6), dtype=bool)
    masks[:, 0:2, 0:3] = True
    heat = np.zeros((3, 6, 6))
    heat[0, 1, 2], heat[0, 5, 5] = 3, 1      # in the mask, and a quarter outside
    heat[1, 2, 2], heat[1, 0, 0] = 3, 2      # just below the mask
    assert pointing_game(heat, masks).tolist() == [True, False, False], "a level map of zeros points nowhere"
    np.testing.assert_allclose(energy_inside(heat, masks), [0.75, 0.4, 0])


@pytest.mark.parametrize("place, point", [((0, 0), (14, 14)), ((3, 1), (98, 42)), ((2, 3), (70, 98))])
def test_a_place_points_at_its_middle(place, point):
    heat, masks = np.zeros((1, 4, 4)), np.zeros((1, 112, 112), dtype=bool)
    heat[(0, *place)] = 1.0
    masks[(0, *point)] = True
    assert pointing_game(heat, masks)[0] and not pointing_game(heat, ~masks)[0]


def test_turning_everything_about_changes_nothing():
    rng = np.random.default_rng(0)
    heat, masks = rng.random((6, 3, 5)), rng.random((6, 33, 25)) < 0.4
    for turn in (lambda a: a[:, ::-1], lambda a: a[:, :, ::-1], lambda a: a.transpose(0, 2, 1)):
        np.testing.assert_array_equal(pointing_game(turn(heat), turn(masks)), pointing_game(heat, masks))
        np.testing.assert_allclose(energy_inside(turn(heat), turn(masks)), energy_inside(heat, masks), rtol=1e-5)


def test_of_equally_warm_places_the_most_central_points():
    heat, masks = np.zeros((1, 5, 5)), np.zeros((1, 5, 5), dtype=bool)
    heat[0, 1:4, 1:4], masks[0, 2, 2] = 1.0, True
    assert pointing_game(heat, masks)[0]


def test_energy_of_a_coarse_map():
    heat = np.array([[[0.0, 1.0], [0.0, 0.0]]])
    right = np.zeros((1, 4, 4), dtype=bool)
    right[:, :2, 2:] = True
    # linear between the places' middles: 0, 1/4, 3/4, 1 across, and the same downwards
    stretched = np.outer([1, 0.75, 0.25, 0], [0, 0.25, 0.75, 1])
    assert math.isclose(energy_inside(heat, right)[0], stretched[:2, 2:].sum() / stretched.sum(), rel_tol=1e-6)


def test_a_map_finer_than_the_mask_keeps_its_warmth():
    heat, mask = np.zeros((1, 64, 64)), np.zeros((1, 8, 8), dtype=bool)
    heat[0, 3, 3], mask[0, 0, 0] = 1.0, True
    assert energy_inside(heat, mask)[0] > 0.5


def test_level_warmth_has_the_share_of_the_mask_inside():
    masks = np.random.default_rng(0).random((70, 12, 12)) < 0.3   # more than are stretched at a time
    np.testing.assert_allclose(energy_inside(np.full((70, 3, 3), 0.2), masks), masks.mean((1, 2)), rtol=1e-5)


def test_maps_dealt_out_by_a_loop():
    rng = np.random.default_rng(1)
    heat, masks, groups = rng.random((70, 3, 3)), rng.random((70, 9, 9)) < 0.4, np.arange(70) // 2
    heat[5] = 0
    pairs = [(i, j) for i in range(70) for j in range(70) if groups[i] != groups[j]]
    one, other = ([k[n] for k in pairs] for n in (0, 1))
    hits, inside = dealt_out(heat, masks, groups)
    assert math.isclose(hits, pointing_game(heat[one], masks[other]).mean(), rel_tol=1e-9)
    assert math.isclose(inside, energy_inside(heat[one], masks[other]).mean(), rel_tol=1e-5)
    assert dealt_out(heat, masks) != (hits, inside), "without groups a copy counts as another image"
    with pytest.raises(ValueError, match="all 70 images are of one group"):
        dealt_out(heat, masks, np.zeros(70))


def test_best_maps_are_the_share_of_each_place():
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, :4, :2], masks[1, 5, 6] = True, True
    np.testing.assert_allclose(best_maps(masks, (2, 2)), [[[0.5, 0], [0, 0]], [[0, 0], [0, 1 / 16]]])


def test_centre_map_is_a_bell_around_the_middle():
    bell = centre_map(31)
    assert bell.argmax() == 15 * 31 + 15 and math.isclose(bell.max(), 1)
    np.testing.assert_allclose(bell, bell.T), np.testing.assert_allclose(bell, bell[::-1])
    assert math.isclose(bell[15, 15 + 5] / bell[15, 15], math.exp(-((6 * 5 / 31) ** 2) / 2))
    middle = np.zeros((1, 224, 224), dtype=bool)
    middle[0, 112, 112] = True
    assert pointing_game(centre_map()[None], middle)[0]


def test_localisation_scores_hold_every_measure(images):
    masks, heat = images.masks, best_maps(images.masks, (4, 4))
    scores = localisation_scores(heat, masks, masks[:20].mean(0))
    assert tuple(scores) == LOCALISATION and math.isclose(scores["area"], masks.mean())
    assert scores["pointing_game"] == scores["pointing_game_best"] == pointing_game(heat, masks).mean()
    assert scores["energy"] == scores["energy_best"] > scores["energy_other"] == dealt_out(heat, masks)[1]
    assert scores["pointing_game_centre"] == masks[:, 16, 16].mean()
    same = np.broadcast_to(masks[:20].mean(0), masks.shape)
    assert (scores["pointing_game_average"], scores["energy_average"]) == (pointing_game(same, masks).mean(), energy_inside(same, masks).mean())


def test_localisation_of_a_taught_and_an_untaught_encoder(taught, untaught, images):
    train, test = np.arange(25), np.arange(25, 40)
    scores = localisation(taught, images, train, test)
    by_hand = localisation_scores(heat_maps(taught, images.images[test]), images.masks[test], images.masks[train].mean(0))
    assert scores == {"n_marked": 15, **by_hand}
    classifier = LinearClassifier(random_state=0).fit(untaught.transform(images.images[train]), images.labels[train])
    heat = heat_maps(untaught, images.images[test], classifier)
    assert localisation(untaught, images, train, test)["energy"] == pytest.approx(energy_inside(heat, images.masks[test]).mean())


def test_only_images_with_a_lesion_are_scored(taught):
    three = phantom(n=40, size=32, random_state=0)   # with normal ones
    rows = marked_rows(three)
    assert rows.tolist() == np.flatnonzero(three.labels != three.class_names.index("normal")).tolist()
    assert marked_rows(three, [5, 3, 8]).tolist() == [i for i in (5, 3, 8) if i in rows]
    train, test = np.arange(20), np.arange(20, 40)
    scores = localisation(taught, three, train, test)
    assert scores["n_marked"] == len(marked_rows(three, test)) < 20
    assert scores["area"] == pytest.approx(three.masks[marked_rows(three, test)].mean())


@pytest.mark.parametrize("heat, masks, message", [
    (np.ones((2, 4, 4)), np.ones((3, 8, 8), dtype=bool), "give"),
    (np.ones((2, 4, 4)), np.ones((2, 8, 8)), "of float64; give"),
    (np.ones((0, 4, 4)), np.ones((0, 8, 8), dtype=bool), "n at least 1"),
    (-np.ones((1, 4, 4)), np.ones((1, 8, 8), dtype=bool), "below 0"),
    (np.full((1, 4, 4), np.nan), np.ones((1, 8, 8), dtype=bool), "not finite"),
    (np.ones((2, 4, 4)), np.array([True, False])[:, None, None] * np.ones((2, 8, 8), dtype=bool), "1 masks are empty, the first in row 1"),
])
def test_measures_refuse(heat, masks, message):
    for measure in (pointing_game, energy_inside):
        with pytest.raises(ValueError, match=message):
            measure(heat, masks)


def test_masks_may_be_views_and_groups_one_for_each():
    heat, masks = np.random.default_rng(0).random((3, 4, 4)), np.zeros((3, 8, 8), dtype=bool)
    masks[:, 1:4, 2:5] = True
    turned, average = masks[:, :, ::-1], masks.mean(0)
    assert localisation_scores(heat, turned, average) == localisation_scores(heat, turned.copy(), average)
    with pytest.raises(ValueError, match=r"groups has shape \(2,\); give one entry for each of the 3 images"):
        dealt_out(heat, masks, [0, 1])


def test_rows_may_be_booleans_and_none(images):
    some = np.arange(len(images.images)) % 3 == 0
    assert np.array_equal(marked_rows(images, some), marked_rows(images, np.flatnonzero(some)))
    with pytest.raises(ValueError, match="among these 0 images"):
        marked_rows(images, [])


def test_images_without_outlines_are_refused(taught, images):
    bare = phantom(n=10, size=32, task="benign-malignant")
    bare.masks[:] = False
    with pytest.raises(ValueError, match="phantom has no outlines of lesions among these 10 images"):
        marked_rows(bare)
    with pytest.raises(ValueError, match="KMeans is no ImageEncoder"):
        from sklearn.cluster import KMeans
        localisation(KMeans(2), images, [0], [1])


# --- records ------------------------------------------------------------------------------------------------------

def test_records_with_a_reading_of_grad_cam(images, tmp_path):
    said, settings = [], dict(backbone="resnet18", image_size=16, n_epochs=1, warmup_epochs=0, batch_size=16)
    readings = {"Grad-CAM": localisation}
    run(SimCLR(**settings), images, 1, results=tmp_path, say=said.append)
    record, = run(SimCLR(**settings), images, 1, results=tmp_path, say=said.append, readings=readings)
    assert "seed-0.json is stale (a reading is missing)" in said[1] and record["scores"]["Grad-CAM"]["n_marked"] == 8
    run(SimCLR(**settings), images, 1, results=tmp_path, say=said.append, readings=readings)
    run(SimCLR(**settings), images, 1, results=tmp_path, say=said.append)
    assert said[-2:] == 2 * ["SimCLR: 1 of 1 seeds are there, 0 to run"], "a reading more does no harm"
    frame = read_records(tmp_path)
    row = frame[frame["reading"] == "Grad-CAM"].iloc[0]
    assert {k: row[k] for k in LOCALISATION} == {k: record["scores"]["Grad-CAM"][k] for k in LOCALISATION}


def test_pixels_have_no_map_and_leave_no_row(images, tmp_path):
    model = SimCLR("resnet18", image_size=16, n_epochs=0, warmup_epochs=0, output="pixels")
    record, = run(model, images, 1, results=tmp_path, say=None, readings={"Grad-CAM": localisation})
    assert record["scores"]["Grad-CAM"] == {} and "Grad-CAM" not in set(read_records(tmp_path)["reading"])


def test_readings_are_for_held_out_images(images, tmp_path):
    from sklearn.cluster import KMeans
    with pytest.raises(ValueError, match="readings are for estimators that are scored on held-out images, not for KMeans"):
        run(KMeans(2), images, 1, results=tmp_path, readings={"Grad-CAM": localisation})
