"""The figures, read back: what is drawn is what was given, and nothing else is touched."""
import base64
import io
import re
import subprocess
import sys
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import same_color, to_rgba
from matplotlib.figure import Figure
from sklearn.manifold import trustworthiness

from bc_clust import plots
from bc_clust.plots import (
    LINES, MARKERS, PALETTE, SEQUENTIAL, STYLE, contrast, figure_html, plot_cluster_sizes, plot_contingency, plot_embedding,
    plot_heat_map, plot_history, plot_images, plot_images_by_cluster, plot_reconstructions, plot_scores, relative_luminance, text_colour,
    tsne, use_style)

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(60, 2))
LABELS = np.repeat([0, 1, 2], [40, 15, 5])
IMAGES = RNG.integers(0, 256, size=(10, 6, 5), dtype=np.uint8)
HISTORY = pd.DataFrame({"phase": ["pretrain"] * 3 + ["cluster"] * 2, "epoch": [1, 2, 3, 1, 2],
                        "loss": [4.0, 3, 2, 5, 1], "kl": [np.nan, np.nan, np.nan, 0.5, 0.25]})
TABLE = pd.DataFrame([[84, 303], [126, 267]], index=pd.Index([0, 1], name="cluster"), columns=["malignant", "benign"])
PATH = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
SCORES = pd.DataFrame({"label": ["b", "b", "a", "a", "a"], "accuracy": [0.5, 0.7, 0.6, np.nan, 0.6], "nmi": np.nan})

CALLS = {
    "embedding": lambda ax: plot_embedding(POINTS, LABELS, ["x", "y", "z"], ax=ax),
    "history": lambda ax: plot_history(HISTORY, ["loss", "kl"], ax=ax),
    "contingency": lambda ax: plot_contingency(TABLE, ax=ax),
    "heat_map": lambda ax: plot_heat_map(IMAGES[0], np.eye(2), ax=ax, title="heat"),
    "images": lambda ax: plot_images(IMAGES, ax=ax, titles=list("abcdefghij")),
    "by_cluster": lambda ax: plot_images_by_cluster(IMAGES, np.arange(10) % 3, 4, ax=ax),
    "reconstructions": lambda ax: plot_reconstructions(IMAGES, IMAGES / 255, ax=ax),
    "cluster_sizes": lambda ax: plot_cluster_sizes(PATH, 2, ax=ax, majority=0.75),
    "scores": lambda ax: plot_scores(SCORES, ax=ax, majority=0.73),
}
every_plot = pytest.mark.parametrize("draw", CALLS.values(), ids=CALLS.keys())


def axes():
    return Figure(figsize=(5, 4), layout="constrained").subplots()


def rendered(ax):
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="png")
    buffer.seek(0)
    return plt.imread(buffer)


def legend_texts(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


# ---- what holds for every plot ----------------------------------------------------------------


@every_plot
def test_given_axes_are_used_and_pyplot_is_left_alone(draw):
    before, opened = dict(mpl.rcParams), plt.get_fignums()
    ax = axes()
    assert draw(ax) is ax
    rendered(ax)
    assert plt.get_fignums() == opened and dict(mpl.rcParams) == before


@every_plot
def test_without_axes_one_new_figure_in_the_house_style(draw):
    opened, before = plt.get_fignums(), dict(mpl.rcParams)
    ax = draw(None)
    assert len(plt.get_fignums()) == len(opened) + 1
    assert ax.figure.dpi == STYLE["figure.dpi"] and dict(mpl.rcParams) == before


@every_plot
def test_same_input_same_pixels(draw):
    assert np.array_equal(rendered(draw(axes())), rendered(draw(axes())))


@pytest.mark.parametrize("name", [n for n in CALLS if n not in ("images", "reconstructions", "heat_map")])
def test_axes_are_labelled(name):
    ax = CALLS[name](axes())
    assert ax.get_xlabel() and ax.get_ylabel()


@every_plot
def test_nothing_is_cut_off_or_on_top_of_the_data(draw):
    ax = draw(axes())
    rendered(ax)
    whole, figure = ax.get_tightbbox(), ax.figure.bbox
    assert whole.x0 >= figure.x0 - 1 and whole.x1 <= figure.x1 + 1 and whole.y0 >= figure.y0 - 1 and whole.y1 <= figure.y1 + 1
    if ax.get_legend() is not None:
        legend = ax.get_legend().get_window_extent()
        assert not legend.overlaps(ax.bbox), "the legend lies on the data"
        assert not legend.overlaps(ax.xaxis.get_tightbbox()), "the legend lies on the labels"


def test_import_changes_no_setting():
    code = ("import matplotlib as m; m.use('Agg'); a = dict(m.rcParams); import bc_clust.plots; "
            "import matplotlib.pyplot as p; assert dict(m.rcParams) == a and not p.get_fignums(); print('same')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr


# ---- style ------------------------------------------------------------------------------------


def test_use_style_puts_its_settings_back_even_after_an_error():
    before = dict(mpl.rcParams)
    with pytest.raises(KeyError), use_style():
        assert mpl.rcParams["legend.fontsize"] == STYLE["legend.fontsize"] != before["legend.fontsize"]
        raise KeyError
    assert dict(mpl.rcParams) == before


def test_use_style_leaves_alone_what_is_not_its_own():
    """A backend that is loaded inside switches interactive mode on; that has to last."""
    was = mpl.rcParams["interactive"]
    try:
        with use_style():
            mpl.rcParams["interactive"] = not was
        assert mpl.rcParams["interactive"] is (not was)
    finally:
        mpl.rcParams["interactive"] = was


def test_luminance_and_contrast_of_known_colours():
    assert np.allclose(relative_luminance([[1, 0, 0], [0, 1, 0], [0, 0, 1]]), [0.2126, 0.7152, 0.0722])
    assert np.isclose(relative_luminance((0.5, 0.5, 0.5)), 0.21404, atol=1e-5)
    assert np.isclose(relative_luminance((0.02, 0.02, 0.02)), 0.02 / 12.92)
    assert relative_luminance((1, 1, 1, 0.2)) == pytest.approx(1)
    assert np.isclose(contrast((1, 1, 1), (0, 0, 0)), 21) and np.isclose(contrast((0, 0, 0), (1, 1, 1)), 21)
    assert np.isclose(contrast((1, 1, 1), to_rgba("#767676")), 4.54, atol=0.005)  # WCAG's own example


def test_text_is_readable_on_every_cell():
    cells = mpl.colormaps[SEQUENTIAL](np.linspace(0, 1, 256))
    assert text_colour((0, 0, 0)) == "white" and text_colour((1, 1, 1)) == "black"
    assert min(contrast(c, to_rgba(text_colour(c))) for c in cells) >= 4.5
    assert np.all(np.diff(relative_luminance(cells)) > 0), "the colour map has to brighten throughout"


def test_looks_differ_by_more_than_colour():
    looks = [plots._look(i) for i in range(90)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 90
    assert len({look["marker"] for look in looks[:9]}) == 9 and len({str(look["linestyle"]) for look in looks[:7]}) == 7
    assert len(PALETTE) == 10 and len(set(MARKERS)) == 9 and len(LINES) == 7
    assert plots._look(-1)["marker"] not in MARKERS


# ---- embedding --------------------------------------------------------------------------------


def test_embedding_draws_each_point_once_with_its_class():
    ax = plot_embedding(POINTS, LABELS, ["x", "y", "z"], ax=axes(), title="here")
    assert len(ax.collections) == 3
    for c, marks in enumerate(ax.collections):
        assert np.array_equal(marks.get_offsets(), POINTS[LABELS == c])
        assert same_color(marks.get_facecolor()[0], PALETTE[c])
    assert legend_texts(ax) == ["x (40)", "y (15)", "z (5)"]
    assert ax.get_title() == "here" and ax.get_aspect() == 1 and len(ax.get_xticks()) == len(ax.get_yticks()) == 0
    shapes = {len(marks.get_paths()[0].vertices) for marks in ax.collections}
    assert len(shapes) == 3, "a marker of its own for each class"


def test_small_classes_lie_on_top():
    for sizes in ([40, 15, 5], [5, 15, 40]):
        ax = plot_embedding(POINTS, np.repeat([0, 1, 2], sizes), ax=axes())
        order = [m.get_zorder() for m in ax.collections]
        assert np.argsort(order).tolist() == np.argsort(sizes)[::-1].tolist()


def test_embedding_leaves_out_nan_rows_and_says_so():
    Z2 = POINTS.copy()
    Z2[:30] = np.nan
    ax = plot_embedding(Z2, LABELS, ax=axes())
    assert sum(len(m.get_offsets()) for m in ax.collections) == 30
    assert legend_texts(ax) == ["class 0 (10)", "class 1 (15)", "class 2 (5)"]
    assert ax.get_legend().get_title().get_text() == "30 of 60 points drawn"


def test_embedding_noise_absent_class_and_no_legend():
    ax = plot_embedding(POINTS, np.where(LABELS == 1, -1, LABELS), ["x", "y", "z"], ax=axes())
    assert legend_texts(ax) == ["noise (15)", "x (40)", "z (5)"]
    assert same_color(ax.collections[2].get_facecolor()[0], PALETTE[2]), "class 2 keeps its colour where class 1 is absent"
    assert plot_embedding(POINTS, LABELS, ax=axes(), legend=False).get_legend() is None
    bool_labels = plot_embedding(POINTS, LABELS > 0, ax=axes())
    assert legend_texts(bool_labels) == ["class 0 (40)", "class 1 (20)"]


def half_missing():
    Z2 = POINTS.copy()
    Z2[3, 0] = np.nan
    return Z2


@pytest.mark.parametrize("Z2, labels, names, message", [
    (POINTS[:, :1], LABELS, None, "two columns"),
    (POINTS, LABELS[:-1], None, r"labels has shape \(59,\), but there are 60 rows"),
    (POINTS, LABELS[:, None], None, r"one label a row, shape \(60,\)"),
    (POINTS, LABELS.astype(float), None, "float64; give whole numbers"),
    (POINTS, LABELS.astype(str), None, "give whole numbers"),
    (POINTS, LABELS - 2, None, "labels holds -2"),
    (POINTS, LABELS, ["x", "y"], "go up to 2, but class_names holds 2 names"),
    (POINTS * np.nan, LABELS, None, "no finite row"),
    (np.where(POINTS > 1, np.inf, POINTS), LABELS, None, "infinite"),
    (half_missing(), LABELS, None, "half-missing"),
    (POINTS[:0], LABELS[:0], None, "no finite row"),
])
def test_embedding_refuses(Z2, labels, names, message):
    ax = axes()
    with pytest.raises(ValueError, match=message):
        plot_embedding(Z2, labels, names, ax=ax)
    assert not ax.collections


# ---- t-SNE ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def groups():
    rng = np.random.default_rng(1)
    label = np.repeat([0, 1, 2], 30)
    return rng.normal(size=(90, 8)) + 12 * np.eye(8)[label], label


def test_tsne_keeps_neighbours_and_repeats_itself(groups):
    Z, label = groups
    Z2 = tsne(Z, perplexity=10, random_state=3)
    assert Z2.shape == (90, 2) and Z2.dtype == np.float32 and np.isfinite(Z2).all()
    assert np.array_equal(Z2, tsne(Z, perplexity=10, random_state=3))
    assert trustworthiness(Z, Z2, n_neighbors=5) > 0.85
    nearest = np.linalg.norm(Z2[:, None] - Z2[None], axis=2) + 1e9 * np.eye(90)
    assert (label[nearest.argmin(1)] == label).all()


def test_tsne_does_not_depend_on_the_threads_around_it(groups):
    from threadpoolctl import threadpool_limits
    with threadpool_limits(1):
        one = tsne(groups[0], 10)
    with threadpool_limits(2):
        assert np.array_equal(one, tsne(groups[0], 10))


def test_tsne_is_not_moved_by_an_offset(groups):
    """Far from the origin float32 would round the distances away, were the data not centred."""
    Z2 = tsne(groups[0] + 1e9, perplexity=10)
    nearest = np.linalg.norm(Z2[:, None] - Z2[None], axis=2) + 1e9 * np.eye(90)
    assert (groups[1][nearest.argmin(1)] == groups[1]).all()


def test_tsne_repeats_itself_in_many_dimensions():
    """Hundreds of columns: the start is a randomised PCA and depends on the seed."""
    Z = np.random.default_rng(0).normal(size=(200, 784))
    assert np.array_equal(tsne(Z, 10, random_state=1), tsne(Z, 10, random_state=1))
    assert not np.array_equal(tsne(Z, 10, random_state=1), tsne(Z, 10, random_state=2))


def test_tsne_leaves_its_input_alone(groups):
    Z = groups[0].astype(np.float32)
    before = Z.copy()
    tsne(Z, 10)
    assert np.array_equal(Z, before)


def test_tsne_draws_a_seeded_part_and_keeps_the_rows(groups):
    Z = groups[0]
    Z2 = tsne(Z, perplexity=5, random_state=4, max_points=40)
    kept = np.isfinite(Z2).all(axis=1)
    assert Z2.shape == (90, 2) and kept.sum() == 40 and np.isnan(Z2[~kept]).all()
    assert np.array_equal(Z2, tsne(Z, perplexity=5, random_state=4, max_points=40), equal_nan=True)
    other = np.isfinite(tsne(Z, perplexity=5, random_state=5, max_points=40)).all(axis=1)
    assert (other != kept).any()
    assert np.array_equal(Z2[kept], tsne(Z[kept], perplexity=5, random_state=4)), "row i of the result is row i of Z"
    assert np.isfinite(tsne(Z, perplexity=5, max_points=90)).all()


def test_tsne_lowers_the_perplexity_by_its_rule(groups):
    Z = groups[0][:31]
    with pytest.warns(UserWarning, match=r"perplexity 30 is too large for 31 points; 10 is used"):
        lowered = tsne(Z)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(lowered, tsne(Z, perplexity=10))


@pytest.mark.parametrize("n, d", [(4, 3), (5, 1), (50, 1), (40, 2)])
def test_tsne_of_few_points_and_few_dimensions(n, d):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Z2 = tsne(np.random.default_rng(0).normal(size=(n, d)))
    assert Z2.shape == (n, 2) and np.isfinite(Z2).all()


def test_tsne_of_bytes_equals_tsne_of_floats():
    Z = np.random.default_rng(0).integers(0, 256, size=(40, 9), dtype=np.uint8)
    assert np.array_equal(tsne(Z, 5), tsne(Z.astype(float), 5))


def with_one(value):
    Z = np.random.default_rng(0).normal(size=(20, 3))
    Z[7, 1] = value
    return Z


@pytest.mark.parametrize("Z, options, message", [
    (np.zeros((3, 5)), {}, "3 rows; t-SNE needs at least 4"),
    (np.zeros((0, 5)), {}, "0 rows"),
    (np.zeros(5), {}, r"shape \(5,\); give one row a point"),
    (np.zeros((9, 4, 4)), {}, "X.reshape"),
    (np.zeros((9, 0)), {}, "give one row a point"),
    (with_one(np.nan), {}, "1 rows, the first is row 7"),
    (with_one(np.inf), {}, "NaN or infinite"),
    (with_one(1e300), {}, "too large for float32"),
    (np.ones((20, 3)), {}, "all rows of Z are the same"),
    (with_one(0), {"perplexity": 0.5}, "at least 1"),
    (with_one(0), {"perplexity": np.nan}, "at least 1"),
    (with_one(0), {"max_points": 3}, "max_points is 3"),
    (with_one(0), {"max_points": 10.5}, "max_points is 10.5"),
])
def test_tsne_refuses(Z, options, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        warnings.simplefilter("error")
        tsne(Z, **options)


def test_tsne_of_the_real_images(breastmnist):
    flat = breastmnist.images[:200].reshape(200, -1) / 255
    assert trustworthiness(flat, tsne(flat, perplexity=20), n_neighbors=5) > 0.85


# ---- history ----------------------------------------------------------------------------------


def drawn(line):
    x, y = line.get_xdata(), line.get_ydata()
    return x[np.isfinite(y)].tolist(), y[np.isfinite(y)].tolist()


def test_history_counts_epochs_on_and_breaks_between_phases():
    ax = plot_history(HISTORY, ["loss", "kl"], ax=axes())
    assert drawn(ax.lines[0]) == ([1, 2, 3, 4, 5], [4, 3, 2, 5, 1])
    assert drawn(ax.lines[1]) == ([4, 5], [0.5, 0.25])
    assert np.isnan(ax.lines[0].get_ydata()[3]), "no line joins two phases"
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle() and ax.lines[0].get_color() != ax.lines[1].get_color()
    assert ax.lines[2].get_xdata() == [3.5, 3.5]
    top = ax.child_axes[0]
    assert [t.get_text() for t in top.get_xticklabels()] == ["pretrain", "cluster"] and top.get_xticks().tolist() == [2, 4.5]
    assert legend_texts(ax) == ["loss", "kl"] and (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "value")


def test_history_whose_epochs_go_on_by_themselves():
    ax = plot_history(HISTORY.assign(epoch=[1, 2, 3, 4, 5]), "loss", ax=axes())
    assert drawn(ax.lines[0])[0] == [1, 2, 3, 4, 5]
    from_zero = plot_history(HISTORY.assign(epoch=[0, 1, 2, 0, 1]), "loss", ax=axes())
    assert drawn(from_zero.lines[0])[0] == [0, 1, 2, 3, 4]


def test_history_with_three_phases():
    frame = pd.DataFrame({"phase": list("aabbcc"), "epoch": [1, 2] * 3, "loss": range(6)})
    ax = plot_history(frame, "loss", ax=axes())
    assert drawn(ax.lines[0]) == ([1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5])
    assert [line.get_xdata()[0] for line in ax.lines[1:]] == [2.5, 4.5]


def test_history_without_phases_and_with_names():
    ax = plot_history(HISTORY.drop(columns="phase").assign(epoch=range(5)), ["loss"], ax=axes())
    assert ax.get_legend() is None and ax.get_ylabel() == "loss" and not ax.child_axes and len(ax.lines) == 1
    ax = plot_history(HISTORY, ["loss", "kl"], ax=axes(), names=["total", "clustering"], ylabel="loss", log=True)
    assert legend_texts(ax) == ["total", "clustering"] and ax.get_ylabel() == "loss" and ax.get_yscale() == "log"
    one = plot_history(HISTORY.iloc[:1], "loss", ax=axes())
    assert one.lines[0].get_marker() == "o", "a single epoch needs a marker to be seen"


def test_history_skips_what_is_not_finite():
    ax = plot_history(HISTORY.assign(loss=[4, np.inf, 2, 5, 1]), "loss", ax=axes())
    assert drawn(ax.lines[0])[1] == [4, 2, 5, 1]


@pytest.mark.parametrize("frame, columns, options, message", [
    (HISTORY, ["loss", "acc"], {}, r"no column \['acc'\]; give some of .*'kl'"),
    (HISTORY, [], {}, "no column"),
    (HISTORY, "loss", {"x": "step"}, r"no column \['step'\]"),
    (HISTORY.iloc[:0], "loss", {}, "no rows"),
    ({"loss": [1]}, "loss", {}, "DataFrame"),
    (HISTORY.iloc[:3], "kl", {}, "'kl' of the history holds no finite value"),
    (HISTORY.assign(loss=0.0), "loss", {"log": True}, "0 or less"),
    (HISTORY, ["loss"], {"names": ["a", "b"]}, "2 names for 1 columns"),
])
def test_history_refuses(frame, columns, options, message):
    with pytest.raises(ValueError, match=message):
        plot_history(frame, columns, ax=axes(), **options)


# ---- contingency ------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise, shares, texts", [
    ("cluster", [[84 / 387, 303 / 387], [126 / 393, 267 / 393]], ["84 (22%)", "303 (78%)", "126 (32%)", "267 (68%)"]),
    ("class", [[0.4, 303 / 570], [0.6, 267 / 570]], ["84 (40%)", "303 (53%)", "126 (60%)", "267 (47%)"]),
    ("all", [[84 / 780, 303 / 780], [126 / 780, 267 / 780]], ["84 (11%)", "303 (39%)", "126 (16%)", "267 (34%)"]),
])
def test_contingency_by_hand(normalise, shares, texts):
    ax = plot_contingency(TABLE, ax=axes(), normalise=normalise)
    assert np.allclose(ax.images[0].get_array(), shares)
    assert [t.get_text() for t in ax.texts] == texts
    assert [t.get_position() for t in ax.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0 (387)", "1 (393)"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["malignant\n(210)", "benign\n(570)"]
    assert ax.images[0].get_clim() == (0, 1) and {"cluster": "row", "class": "column", "all": "all images"}[normalise] in ax.get_xlabel()
    cells = ax.images[0].to_rgba(np.array(shares)).reshape(-1, 4)
    assert min(contrast(c, to_rgba(t.get_color())) for c, t in zip(cells, ax.texts)) >= 4.5


def test_contingency_with_noise_and_an_empty_class():
    table = pd.DataFrame([[1, 0, 3], [2, 0, 0]], index=[-1, 0], columns=["a", "b", "c"])
    ax = plot_contingency(table, ax=axes(), normalise="class", title="t")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["noise (4)", "0 (2)"] and ax.get_title() == "t"
    assert np.isfinite(ax.images[0].get_array()).all() and ax.texts[1].get_text() == "0 (0%)"


@pytest.mark.parametrize("table, options, message", [
    (TABLE, {"normalise": "rows"}, "'rows'; give one of"),
    (TABLE.iloc[:0], {}, "counts of 0 or more"),
    (TABLE - 100, {}, "counts of 0 or more"),
    (TABLE * np.nan, {}, "counts of 0 or more"),
    (TABLE.astype(str), {}, "counts of 0 or more"),
    ([1, 2], {}, "clusters in rows"),
])
def test_contingency_refuses(table, options, message):
    with pytest.raises(ValueError, match=message):
        plot_contingency(table, ax=axes(), **options)


# ---- images -----------------------------------------------------------------------------------


def tile(ax, row, column, h=6, w=5, top=0):
    """Grey values of one image in a montage with a gap of one pixel."""
    y, x = row * (h + 1 + top) + top, column * (w + 1)
    return ax.images[0].get_array()[y:y + h, x:x + w, 0]


def test_montage_shows_each_image_unchanged_in_its_place():
    ax = plot_images(IMAGES, ax=axes(), n_cols=4)
    assert ax.images[0].get_array().shape == (3 * 6 + 2, 4 * 5 + 3, 3)
    for i in range(10):
        assert np.allclose(tile(ax, i // 4, i % 4) * 255, IMAGES[i])
    assert (tile(ax, 2, 2) == 1).all() and (tile(ax, 2, 3) == 1).all(), "empty places are white"
    assert (ax.images[0].get_array()[6] == 1).all() and (ax.images[0].get_array()[:, 5] == 1).all(), "gaps are white"


def test_montage_of_fewer_images_than_columns():
    assert plot_images(IMAGES[:2], ax=axes(), n_cols=8).images[0].get_array().shape == (6, 11, 3)


def test_one_grey_scale_for_all_images():
    floats = np.stack([np.full((6, 5), v) for v in (-1.0, 0.0, 3.0)])
    ax = plot_images(floats, ax=axes())
    assert [tile(ax, 0, i)[0, 0] for i in range(3)] == [0, 0.25, 1]
    ax = plot_images(floats, ax=axes(), vmin=0, vmax=6)
    assert [tile(ax, 0, i)[0, 0] for i in range(3)] == [0, 0, 0.5]
    dim = plot_images(np.full((2, 6, 5), 51, np.uint8), ax=axes())
    assert np.allclose(tile(dim, 0, 0), 0.2), "bytes are shown from 0 to 255 whatever they hold"
    constant = plot_images(np.full((2, 6, 5), 7.0), ax=axes()).images[0].get_array()
    assert not np.ma.is_masked(constant) and (constant[:6, :5] == 0).all(), "constant images are black, not missing"


def test_colour_images_keep_their_colour():
    rgb = RNG.integers(0, 256, size=(3, 6, 5, 3), dtype=np.uint8)
    ax = plot_images(rgb, ax=axes())
    assert np.allclose(ax.images[0].get_array()[:6, 6:11] * 255, rgb[1])


def test_titles_stand_above_their_images():
    ax = plot_images(IMAGES, ax=axes(), n_cols=5, titles=[f"image {i}" for i in range(10)])
    assert [t.get_text() for t in ax.texts] == [f"image {i}" for i in range(10)]
    top = (ax.images[0].get_array().shape[0] + 1) // 2 - 7
    assert top > 0 and np.allclose(tile(ax, 1, 2, top=top) * 255, IMAGES[7])
    x, y = ax.texts[7].get_position()
    assert x == 2 * 6 + 2 and y == (6 + 1 + top) + top - 1
    assert 4 <= ax.texts[0].get_fontsize() <= 9


@pytest.mark.parametrize("images, options, message", [
    (IMAGES.reshape(10, -1), {}, "flat images are X.reshape"),
    (IMAGES[:0], {}, r"shape \(0, 6, 5\)"),
    (IMAGES[..., None], {}, "give numbers of shape"),
    (IMAGES.astype(str), {}, "give numbers of shape"),
    (np.where(IMAGES > 200, np.nan, IMAGES), {}, "NaN or infinite pixels"),
    (IMAGES, {"n_cols": 0}, "n_cols is 0"),
    (IMAGES, {"titles": ["a"]}, "1 titles for 10 images"),
])
def test_images_refuse(images, options, message):
    with pytest.raises(ValueError, match=message):
        plot_images(images, ax=axes(), **options)


def test_images_by_cluster_nearest_first():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 2])
    distance = np.array([3, 1, 2, 9, 8, 7, 6, 5, 4, 0.0])
    ax = plot_images_by_cluster(IMAGES, labels, 4, distance=distance, ax=axes())
    for row, members in enumerate(([1, 2, 0], [8, 7, 6, 5], [9])):
        for column, i in enumerate(members):
            assert np.allclose(tile(ax, row, column) * 255, IMAGES[i])
        assert all((tile(ax, row, column) == 1).all() for column in range(len(members), 4))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["cluster 0\n3 (30.0%)", "cluster 1\n6 (60.0%)", "cluster 2\n1 (10.0%)"]
    assert "nearest" in ax.get_xlabel()


def test_images_by_cluster_draws_at_random_from_a_seed():
    many = np.arange(200, dtype=np.uint8).reshape(200, 1, 1)
    labels = np.arange(200) % 2

    def shown(seed):
        sheet = plot_images_by_cluster(many, labels, 5, ax=axes(), random_state=seed).images[0].get_array()
        return np.round(sheet[::2, ::2, 0] * 255).astype(int)

    assert np.array_equal(shown(0), shown(0)) and not np.array_equal(shown(0), shown(1))
    assert (shown(0)[0] % 2 == 0).all() and (shown(0)[1] % 2 == 1).all() and (np.diff(shown(0)) > 0).all()
    assert shown(0).max() > 20, "not the first of the file"
    assert "random" in plot_images_by_cluster(many, labels, 5, ax=axes()).get_xlabel()


def test_images_by_cluster_noise_comes_last_and_colour_works():
    labels = np.array([-1, 1, 1, 0, 0, 0, 1, 1, -1, 0])
    ax = plot_images_by_cluster(IMAGES, labels, 2, distance=np.arange(10), ax=axes())
    assert [t.get_text() for t in ax.get_yticklabels()] == ["cluster 0\n4 (40.0%)", "cluster 1\n4 (40.0%)", "noise\n2 (20.0%)"]
    assert np.allclose(tile(ax, 2, 0) * 255, IMAGES[0]) and np.allclose(tile(ax, 0, 0) * 255, IMAGES[3])
    rgb = np.repeat(IMAGES[..., None], 3, axis=-1)
    same = plot_images_by_cluster(rgb, labels, 2, distance=np.arange(10), ax=axes())
    assert np.allclose(same.images[0].get_array(), ax.images[0].get_array())


@pytest.mark.parametrize("labels, options, message", [
    (np.zeros(9, int), {}, "one label a row"),
    (np.zeros(10), {}, "whole numbers"),
    (np.zeros(10, int), {"distance": np.ones(9)}, "one number an image"),
    (np.zeros(10, int), {"distance": np.full(10, np.nan)}, "missing values"),
    (np.zeros(10, int), {"n_per_cluster": 0}, "n_per_cluster is 0"),
])
def test_images_by_cluster_refuses(labels, options, message):
    with pytest.raises(ValueError, match=message):
        plot_images_by_cluster(IMAGES, labels, ax=axes(), **options)


def test_reconstructions_show_pairs_and_their_errors():
    X_hat = IMAGES / 255 + np.arange(10)[:, None, None] / 100
    ax = plot_reconstructions(IMAGES, X_hat, ax=axes(), n=20)
    for i in range(10):
        assert np.allclose(tile(ax, 0, i), IMAGES[i] / 255)
        assert np.allclose(tile(ax, 1, i), np.minimum(X_hat[i], 1)), "the images set the scale"
    assert [float(t.get_text()) for t in ax.get_xticklabels()] == pytest.approx([(i / 100) ** 2 for i in range(10)], rel=1e-2)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["image", "reconstruction"]


def test_reconstructions_of_standardised_images_share_a_scale():
    X = (IMAGES / 255 - 0.5) / 0.25
    ax = plot_reconstructions(X, X / 2, ax=axes(), n=10)
    low, high = X.min(), X.max()
    assert np.allclose(tile(ax, 0, 4), (X[4] - low) / (high - low)) and np.allclose(tile(ax, 1, 4), (X[4] / 2 - low) / (high - low))


def test_reconstructions_flat_or_not_bytes_or_floats():
    pictures = [plot_reconstructions(X, X_hat, ax=axes(), n=5, random_state=2).images[0].get_array()
                for X in (IMAGES, IMAGES / 255) for X_hat in (IMAGES, IMAGES / 255, (IMAGES / 255).reshape(10, -1))]
    assert all(np.allclose(p, pictures[0]) for p in pictures[1:])
    other = plot_reconstructions(IMAGES, IMAGES, ax=axes(), n=5, random_state=3).images[0].get_array()
    assert not np.allclose(other, pictures[0])


@pytest.mark.parametrize("X_hat, options, message", [
    (IMAGES[:9] / 255, {}, "a reconstruction of each image"),
    (IMAGES[:, :5] / 255, {}, "of the same size"),
    (np.full(IMAGES.shape, np.nan), {}, "X_hat holds NaN"),
    (IMAGES / 255, {"n": 0}, "n is 0"),
])
def test_reconstructions_refuse(X_hat, options, message):
    with pytest.raises(ValueError, match=message):
        plot_reconstructions(IMAGES, X_hat, ax=axes(), **options)


@pytest.mark.parametrize("smooth, interpolation", [(False, "nearest"), (True, "bilinear")])
def test_heat_map_lies_over_the_whole_image(smooth, interpolation):
    heat, (h, w) = np.array([[0.0, 2.0], [1.0, 0.5], [0.0, 0.0]]), IMAGES[0].shape
    mask = np.zeros((h, w), dtype=bool)
    mask[1:3, 2:4] = True
    ax = plot_heat_map(IMAGES[0], heat, mask, ax=axes(), smooth=smooth, title="says benign")
    below, above = ax.images
    assert np.array_equal(below.get_array(), IMAGES[0]) and np.array_equal(above.get_array(), heat)
    assert below.get_extent() == above.get_extent() == [0, w, h, 0] or below.get_extent() == above.get_extent() == (0, w, h, 0)
    assert above.get_clim() == (0, 2) and above.get_interpolation() == interpolation and 0 < above.get_alpha() < 1
    outline = ax.collections[0].get_paths()[0].vertices
    assert (outline.min(0) >= [1.5, 0.5]).all() and (outline.max(0) <= [4.5, 3.5]).all() and ax.get_title() == "says benign"


def test_heat_map_of_nothing():
    ax = plot_heat_map(IMAGES[0], np.zeros((2, 2)), np.zeros(IMAGES[0].shape, dtype=bool), ax=axes())
    assert ax.images[1].get_clim() == (0, 1) and not ax.collections, "no outline where there is no lesion"


@pytest.mark.parametrize("heat, mask, message", [
    (np.ones(4), None, r"heat has shape \(4,\)"),
    (-np.ones((2, 2)), None, "finite numbers of at least 0"),
    (np.full((2, 2), np.nan), None, "finite numbers"),
    (np.ones((2, 2)), np.ones((3, 3), dtype=bool), r"mask has shape \(3, 3\); give that of the image"),
])
def test_heat_map_refuses(heat, mask, message):
    with pytest.raises(ValueError, match=message):
        plot_heat_map(IMAGES[0], heat, mask, ax=axes())


# ---- sizes and scores -------------------------------------------------------------------------


def test_cluster_sizes_by_hand():
    ax = plot_cluster_sizes(PATH, 3, ax=axes(), majority=0.75)
    assert [line.get_ydata().tolist() for line in ax.lines[:3]] == [[0.5, 0.25, 0], [0.5, 0.75, 1], [0, 0, 0]]
    assert ax.lines[0].get_xdata().tolist() == [0, 1, 2] and list(ax.lines[3].get_ydata()) == [0.75, 0.75]
    assert sorted(legend_texts(ax)) == ["cluster 0 (last: 0)", "cluster 1 (last: 4)", "cluster 2 (last: 0)", "largest class (75.0%)"]
    assert len({line.get_marker() for line in ax.lines[:3]}) == 3 and len({line.get_linestyle() for line in ax.lines[:3]}) == 3
    low, high = ax.get_ylim()
    assert low < 0 and high > 1, "a share of 0 or 1 is not hidden by the frame"


def test_cluster_sizes_with_noise_and_other_epochs():
    ax = plot_cluster_sizes(np.array([[0, -1], [0, 0]], dtype=np.int16), 1, ax=axes(), x=[10, 20], xlabel="iteration")
    assert [line.get_ydata().tolist() for line in ax.lines] == [[0.5, 1], [0.5, 0]]
    assert legend_texts(ax) == ["cluster 0 (last: 2)", "noise (last: 0)"]
    assert ax.lines[0].get_xdata().tolist() == [10, 20] and ax.get_xlabel() == "iteration"


@pytest.mark.parametrize("path, k, options, message", [
    (PATH[0], 2, {}, r"\(n_epochs, n\)"),
    (PATH.astype(float), 2, {}, "whole numbers"),
    (PATH[:0], 2, {}, r"shape \(0, 4\)"),
    (PATH, 1, {}, "labels from 0 to 1, but n_clusters is 1"),
    (PATH - 2, 2, {}, "-1 is noise"),
    (PATH, 0, {}, "n_clusters is 0"),
    (PATH, 2, {"x": [1, 2]}, "for 3 epochs"),
    (PATH, 2, {"majority": 73.1}, "majority is 73.1"),
    (PATH, 2, {"majority": 0}, "above 0"),
])
def test_cluster_sizes_refuse(path, k, options, message):
    with pytest.raises(ValueError, match=message):
        plot_cluster_sizes(path, k, ax=axes(), **options)


def test_scores_one_point_a_seed_with_mean_and_spread():
    ax = plot_scores(SCORES, ax=axes(), majority=0.731)
    clouds = [c for c in ax.collections if len(c.get_offsets()) and c.get_offsets().shape[0] == 2]
    assert [c.get_offsets()[:, 1].tolist() for c in clouds] == [[0.5, 0.7], [0.6, 0.6]]
    ticks = [t.get_text() for t in ax.get_xticklabels()]
    assert ticks == ["b\n0.600 ± 0.141\nn = 2", "a\n0.600 ± 0.000\nn = 2"], "order of appearance; NaN is left out of n"
    for i, (bar, sd) in enumerate(zip(ax.containers, (0.02**0.5, 0.0))):
        assert bar[0].get_ydata().tolist() == [0.6]
        assert abs(bar[0].get_xdata()[0] - i) < 0.5 and all(abs(x - i) < 0.5 for x in clouds[i].get_offsets()[:, 0])
        if sd:
            (low, high), = [s[:, 1] for s in bar[2][0].get_segments()]
            assert np.isclose(low, 0.6 - sd) and np.isclose(high, 0.6 + sd)
    assert legend_texts(ax) == ["largest class (73.1%)"] and ax.get_ylabel() == "accuracy" and ax.get_xlabel() == "label"


def test_scores_of_one_seed_and_other_columns():
    frame = pd.DataFrame({"method": ["k-means on the principal components"], "balanced_accuracy": [0.51234]})
    ax = plot_scores(frame, "balanced_accuracy", by="method", ax=axes(), digits=4)
    text = ax.get_xticklabels()[0].get_text()
    assert text.endswith("\n0.5123\nn = 1") and max(map(len, text.split("\n"))) <= 14
    assert ax.get_ylabel() == "balanced accuracy" and ax.get_legend() is None


@pytest.mark.parametrize("frame, options, message", [
    (SCORES, {"score": "acc"}, r"no column \['acc'\]"),
    (SCORES, {"by": "method"}, r"no column \['method'\]"),
    (SCORES.iloc[:0], {}, "0 rows"),
    (SCORES, {"score": "nmi"}, "no finite value for"),
    (SCORES, {"majority": 73}, "majority is 73"),
])
def test_scores_refuse(frame, options, message):
    with pytest.raises(ValueError, match=message):
        plot_scores(frame, ax=axes(), **options)


# ---- HTML -------------------------------------------------------------------------------------


def test_figure_html_holds_the_picture_and_its_words():
    fig = Figure(figsize=(3, 2))
    fig.subplots().plot([0, 1])
    element = figure_html(fig, 'a "line" <b>', "k < 3 & rising", dpi=50)
    parts = re.fullmatch(r'<figure><img src="data:image/png;base64,([\w+/=]+)" alt="([^"]*)" style="max-width:100%">'
                         r"<figcaption>(.*)</figcaption></figure>", element)
    assert parts[2] == "a &quot;line&quot; &lt;b&gt;" and parts[3] == "k &lt; 3 &amp; rising"
    png = base64.b64decode(parts[1], validate=True)
    picture = plt.imread(io.BytesIO(png))
    assert picture.shape[2] == 4 and 100 < picture.shape[1] < 200 and np.ptp(picture[..., :3]) > 0.7
    assert b"Software" not in png and element == figure_html(fig, 'a "line" <b>', "k < 3 & rising", dpi=50)
    assert figure_html(fig, "a", "b", dpi=100) != figure_html(fig, "a", "b", dpi=50)


def test_figure_html_keeps_what_lies_outside_the_axes():
    fig = Figure(figsize=(2, 2), dpi=50)
    ax = fig.subplots()
    plain = figure_html(fig, "a", "b")
    ax.text(3, 0.5, "far to the right", transform=ax.transAxes)
    widths = [plt.imread(io.BytesIO(base64.b64decode(e.split("base64,")[1].split('"')[0]))).shape[1] for e in (plain, figure_html(fig, "a", "b"))]
    assert widths[1] > widths[0] + 50


def test_figure_html_leaves_the_figure_open_and_as_it_was():
    fig, _ = plt.subplots(figsize=(3, 2))
    size, opened = fig.get_size_inches().tolist(), plt.get_fignums()
    figure_html(fig, "a", "b", dpi=33)
    assert plt.get_fignums() == opened and fig.get_size_inches().tolist() == size and fig.dpi == mpl.rcParams["figure.dpi"]


@pytest.mark.parametrize("alt, caption, message", [
    ("", "c", "alt is ''"), ("  ", "c", "looks like"), (None, "c", "alt is None"), ("a", "", "caption is ''; .* shows")])
def test_figure_html_wants_words(alt, caption, message):
    with pytest.raises(ValueError, match=message):
        figure_html(Figure(), alt, caption)
