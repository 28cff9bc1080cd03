"""Records: what they hold, when they are skipped or stale, and that tables equal what the records say."""
import dataclasses
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch
from scipy.stats import ttest_1samp
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline

from bc_clust import experiments
from bc_clust.arcface import ArcFace
from bc_clust.cli import variants
from bc_clust.contrastive_ae import ContrastiveAutoencoder
from bc_clust.data import grouped_folds, phantom
from bc_clust.experiments import (PROTOCOL, cluster_embedding, cluster_table, code_digest, markdown_table, paper_table, path_scores, read_records, record_folder,
                                  results_folder, run, score_table, settings_hash, settings_of, smallest_share,
                                  study_records, write_report)
from bc_clust.generated import ConvClassifier
from bc_clust.idec import IDEC
from bc_clust.metrics import classification_scores, clustering_scores, permutation_baseline
from bc_clust.probes import SoftmaxClassifier
from bc_clust.simclr import SimCLR
from bc_clust.training import load_estimator

TINY = dict(hidden_dims=(16,), latent_dim=3, pretrain_epochs=3, max_epochs=3, batch_size=32, n_init=2, n_neighbors=3,
            stop_rule=None, precision="float32", device="cpu")


@pytest.fixture(scope="module")
def images():
    return phantom(n=90, size=12, random_state=0)


@pytest.fixture(scope="module")
def recorded(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return folder, run(IDEC(3, **TINY), images, seeds=2, label="tiny", results=folder, say=None)


def test_record_holds_what_repeats_the_run(images, recorded):
    folder, (first, second) = recorded
    assert (first["label"], first["method"], first["seed"], second["seed"]) == ("tiny", "IDEC", 0, 1)
    assert first["data"] == {"name": "phantom", "task": images.task, "size": "12x12", "n": 90, "sha256": images.sha256,
                             "source": images.source}
    assert first["settings"]["n_neighbors"] == 3 and "random_state" not in first["settings"] and "device" not in first["settings"]
    assert first["code"] == code_digest(IDEC()) and len(first["code"]) == 12
    environment = first["environment"]
    assert environment["threads"] == 1 and environment["precision"] == "float32" and environment["device"] == "cpu"
    assert all(environment[name] for name in ("python", "torch", "numpy", "scikit-learn", "bc_clust"))
    again = IDEC(3, **TINY, random_state=1).fit(images.images)
    assert second["scores"]["last"]["accuracy"] == clustering_scores(images.labels, again.labels_)["accuracy"]
    assert json.loads((record_folder(IDEC(3, **TINY), images, folder) / "seed-1.json").read_text()) == second


def test_arrays_beside_the_record(images, recorded):
    folder = record_folder(IDEC(3, **TINY), images, recorded[0])
    names = {f.name for f in folder.iterdir()}
    assert names == {f"seed-{s}{e}" for s in (0, 1) for e in (".json", ".history.csv", ".labels.npz")} | {
        "seed-0.embedding.safetensors", "seed-0.model.safetensors"}
    stored = np.load(folder / "seed-0.labels.npz", allow_pickle=False)
    fit = IDEC(3, **TINY, random_state=0).fit(images.images)
    assert np.array_equal(stored["labels"], fit.labels_) and np.array_equal(stored["label_path"], fit.label_path_)
    embedding = safetensors.numpy.load_file(folder / "seed-0.embedding.safetensors")["embedding"]
    np.testing.assert_array_equal(embedding, fit.transform(images.images))
    model = load_estimator(folder / "seed-0.model.safetensors")
    np.testing.assert_allclose(model.transform(images.images), embedding, atol=1e-2)
    history = pd.read_csv(folder / "seed-0.history.csv")
    assert history["phase"].tolist() == ["pretrain"] * 3 + ["cluster"] * 3
    along = path_scores(images.labels, fit.label_path_, 3)
    np.testing.assert_allclose(history["accuracy"].iloc[3:], along["accuracy"].iloc[1:], rtol=1e-5)
    assert history["accuracy"].iloc[:3].isna().all()


def test_three_readings(images, recorded):
    scores, fit = recorded[1][0]["scores"], IDEC(3, **TINY, random_state=0).fit(images.images)
    along = path_scores(images.labels, fit.label_path_, 3)
    assert scores["best_by_labels"]["accuracy"] == along["accuracy"].max()
    assert scores["last"]["accuracy"] == along["accuracy"].iloc[-1]
    assert scores["stop"]["fired"] == (fit.stop_epoch_ is not None)
    stopped = run(IDEC(3, **{**TINY, "tol": 2.0}), images, seeds=1, results=recorded[0] / "eager", say=None)[0]["scores"]["stop"]
    assert stopped["fired"] and stopped["epoch"] == 1  # row 1 of the path: after epoch 0


def test_a_collapsed_partition_has_smallest_share_zero():
    assert smallest_share(np.zeros(10, int), 2) == 0 and smallest_share(np.array([0, 0, 1, 0]), 2) == 0.25


def test_valid_records_are_skipped_and_stale_ones_run_again(images, tmp_path, monkeypatch):
    said, fits = [], []
    fit = KMeans.fit
    monkeypatch.setattr(KMeans, "fit", lambda self, *a, **k: (fits.append(self.random_state), fit(self, *a, **k))[1])
    def go(seeds):
        fits.clear(), said.clear()
        run(KMeans(2, n_init=1), images, seeds=seeds, label="k", results=tmp_path, say=said.append)
        return list(fits)
    assert go(2) == [0, 1]
    assert go(3) == [2] and said == ["k: 2 of 3 seeds are there, 1 to run"]
    assert go([1, 7]) == [7]
    file = record_folder(KMeans(2, n_init=1), images, tmp_path) / "seed-0.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "code": "0" * 12}))
    assert go(1) == [0] and "seed-0.json is stale (the method's code changed)" in said[0]
    file.write_text(json.dumps({**record, "data": {**record["data"], "sha256": "x"}}))
    assert go(1) == [0] and "the data changed" in said[0]
    file.write_text(file.read_text()[:50])
    assert go(1) == [0] and "cannot be read" in said[0]
    assert go(1) == []


def test_progress_bar_only_when_asked(images, tmp_path, capsys):
    run(KMeans(2, n_init=1), images, seeds=2, label="quiet", results=tmp_path, say=None)
    assert capsys.readouterr().err == ""
    run(KMeans(2, n_init=1), images, seeds=4, label="loud", results=tmp_path, say=None, progress=True)
    assert "loud" in (shown := capsys.readouterr().err) and "2/2" in shown


def test_an_interrupted_run_leaves_no_record(images, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "_write_arrays", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(KMeans(2, n_init=1), images, seeds=1, results=tmp_path, say=None)
    assert not list(tmp_path.rglob("seed-0.json"))


def test_parallel_seeds_equal_sequential_ones(images, tmp_path):
    one = run(IDEC(3, **TINY), images, seeds=2, results=tmp_path / "a", say=None)
    two = run(IDEC(3, **TINY), images, seeds=2, results=tmp_path / "b", n_jobs=2, say=None)
    assert [r["scores"] for r in one] == [r["scores"] for r in two]


def test_scikit_learn_estimators_go_through_the_same_door(images, tmp_path):
    pipe = make_pipeline(PCA(3, random_state=5), KMeans(2, n_init=1))
    first, second = run(pipe, images, seeds=[4, 5], label="PCA + k-means", results=tmp_path, say=None)
    flat = images.images.reshape(90, -1) / 255
    expected = make_pipeline(PCA(3, random_state=4), KMeans(2, n_init=1, random_state=4)).fit(flat)
    assert first["scores"]["last"]["accuracy"] == clustering_scores(images.labels, expected[-1].labels_)["accuracy"]
    assert set(first["scores"]) == {"last"} and first["environment"]["precision"] == "float64"
    with pytest.raises(TypeError, match="PCA gives no labels_"):
        run(PCA(2), images, seeds=1, results=tmp_path, say=None)


def test_each_estimator_gets_its_input(images):
    assert experiments._input(IDEC(2), images) is images.images
    flat = experiments._input(KMeans(2), images)
    np.testing.assert_allclose(flat, images.images.reshape(90, -1) / 255)


@pytest.mark.parametrize("seeds", [0, [], [1, 1]])
def test_seeds_are_checked(images, tmp_path, seeds):
    with pytest.raises(ValueError, match="at least one seed, each once"):
        run(KMeans(2), images, seeds=seeds, results=tmp_path)


def test_one_class_is_refused_before_the_training(images, tmp_path):
    one = dataclasses.replace(images, labels=np.zeros_like(images.labels), class_names=("benign",))
    with pytest.raises(ValueError, match="phantom holds one class only: what is scored on held-out images needs at least two"):
        run(SimCLR("resnet18", image_size=16), one, seeds=1, results=tmp_path, say=None)
    assert not list(tmp_path.iterdir())


def test_unwritable_results_folder(images, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="cannot write .*Choose a folder"):
        run(KMeans(2, n_init=1), images, seeds=1, results=tmp_path / "file", say=None)


def test_settings_hash_ignores_how_to_run_only():
    base = settings_hash(IDEC(2, **TINY))
    assert base == settings_hash(IDEC(2, **{**TINY, "device": "auto"}, random_state=3, verbose=True, checkpoint_dir="x"))
    for changed in ({"lr": 1e-4}, {"precision": "bfloat16"}, {"n_neighbors": 4}):
        assert base != settings_hash(IDEC(2, **{**TINY, **changed}))
    assert json.loads(json.dumps(settings_of(IDEC(2, **TINY)))) == settings_of(IDEC(2, **TINY))


def edited(monkeypatch, module, old, new):
    "The digest of IDEC with one piece of a module's source replaced."
    original = experiments.inspect.getsource
    source = original(experiments.import_module(module))
    assert source.count(old) == 1, (module, old)
    with monkeypatch.context() as patch:
        patch.setattr(experiments.inspect, "getsource",
                      lambda m: source.replace(old, new) if m.__name__ == module else original(m))
        return code_digest(IDEC())


def test_code_digest_ignores_prose_and_what_the_fit_does_not_use(monkeypatch):
    source = 'class A:\n    "Doc."\n    # thought\n\n    def f(self):\n        """More\n        doc."""\n        return 1  # kept\n'
    assert experiments._code_lines(source) == ["class A:", "    def f(self):", "        return 1  # kept"]
    before = code_digest(IDEC())
    for module, old, new in [("bc_clust.idec", "    z : float tensor (n, d), embedding\n    mu", "    z : an embedding\n    mu"),
                             ("bc_clust.idec", "QUICK = dict(pretrain_epochs=100", "QUICK = dict(pretrain_epochs=99"),
                             ("bc_clust.backbones", "def count_macs(", "def count_them("),
                             ("bc_clust.training", "def load_estimator(path):", "left_over = 1\n\n\ndef load_estimator(path):")]:
        assert edited(monkeypatch, module, old, new) == before, (module, new)


@pytest.mark.parametrize("module, old, new", [
    ("bc_clust.idec", '"idec-pytorch": (False, False, "epoch")', '"idec-pytorch": (False, True, "epoch")'),  # a constant
    ("bc_clust.idec", '"edges": lambda n, e: max(e, 1)', '"edges": lambda n, e: e + 1'),
    ("bc_clust.idec", "x[columns].double()", "x[columns].float()"),                   # a function of a function
    ("bc_clust.training", "torch.randperm(n, generator=generator)", "torch.arange(n)"),
    ("bc_clust.training", "before = rng_state()", "before = None"),                   # under a decorator
    ("bc_clust.training", "@contextlib.contextmanager", "@contextlib.nullcontext"),   # the decorator itself
    ("bc_clust.backbones", "def mlp(widths, activation=nn.ReLU", "def mlp(widths, activation=nn.GELU"),
    ("bc_clust.augment", "device=x.device) >= p", "device=x.device) > p")])
def test_code_digest_follows_every_name_the_fit_uses(monkeypatch, module, old, new):
    assert edited(monkeypatch, module, old, new) != code_digest(IDEC())


def frame():
    rows = [dict(label="B", reading="last", seed=s, accuracy=a, majority_share=0.7, nmi=0.0, settings="h1")
            for s, a in enumerate([0.5, 0.6, 0.7])]
    rows += [dict(label="B", reading="stop", seed=0, accuracy=0.9, majority_share=np.nan, nmi=0.1, settings="h1"),
             dict(label="A", reading="last", seed=0, accuracy=0.4, majority_share=0.7, nmi=0.2, settings="h2")]
    return pd.DataFrame(rows)


def test_score_table_by_hand():
    table = score_table(frame(), scores=("accuracy", "majority_share", "nmi"))
    assert table.index.tolist() == ["B", "A"] and table.loc["B"].tolist() == ["3", "0.600 ± 0.100", "0.700", "0.000 ± 0.000"]
    assert table.loc["A"].tolist() == ["1", "0.400", "0.700", "0.200"]
    stop = score_table(frame(), "stop", scores=("accuracy", "majority_share"))
    assert stop.loc["B"].tolist() == ["1", "0.900", "0.700"] and stop.loc["A", "accuracy"] == "0.400"
    with pytest.raises(ValueError, match="no records"):
        score_table(frame().iloc[:0])


def test_the_majority_share_is_that_of_the_images_that_were_scored():
    rows = [dict(label="A", reading=reading, seed=seed, accuracy=0.9, majority_share=share, settings="h")
            for seed in (0, 1) for reading, share in (("training", 0.64), ("held out", 0.65 + 0.02 * seed))]
    table = {reading: score_table(pd.DataFrame(rows), reading, scores=("majority_share",)).loc["A", "majority_share"] for reading in ("training", "held out")}
    assert table == {"training": "0.640", "held out": "0.660 ± 0.014"}


def test_comparison_table_has_the_papers_order_and_figures():
    records = pd.concat([frame().assign(balanced_accuracy=0.5, ari=0.0, smallest_share=0.5)])
    table = experiments.comparison_table(records, {"A": 41.0, "none": 1.0, "B": 62.05})
    assert table.index.tolist() == ["A", "B"] and table["accuracy in the paper"].tolist() == ["0.4100", "0.6205"]
    assert table.loc["B", "accuracy at the stop rule"] == "0.900" and table.loc["B", "accuracy"] == "0.600 ± 0.100"
    stopped = ["accuracy at the stop rule", "nmi at the stop rule", "smallest share at the stop rule"]
    assert table.columns[3:6].tolist() == stopped and (table.loc["A", stopped] == "-").all() and (table.loc["B", stopped[1:]] != "-").all()


def test_tables_of_readme_and_notebook_are_those_of_the_records():
    root = results_folder().parent
    printed = paper_table("idec-rows").set_index("method")["acc_percent"].to_dict()
    rows = {**variants("kmeans", 2), **variants("idec", 2, "paper", study="table-2")}
    table = experiments.comparison_table(study_records(rows, "breastmnist"), printed)
    assert table.index.tolist() == list(printed) and (table["seeds"] == "10").all()
    assert markdown_table(table) in (root / "README.md").read_text("utf-8"), "README.md: run `make notebooks NAMES=index` and `make sync`"
    notebook = json.loads((root / "nbs" / "30_idec.ipynb").read_text("utf-8"))
    outputs = ["".join(o["data"]["text/html"]) for c in notebook["cells"] for o in c.get("outputs", []) if "text/html" in o.get("data", {})]
    shown = [set(re.findall(r"<td>(.*?)</td>", text)) for text in outputs]
    assert any(set(table["accuracy"]) | set(table["nmi"]) <= values for values in shown), "30_idec: run the notebook again"


def test_the_readmes_counts_of_collapsed_stops_are_those_of_the_records():
    rows = {**variants("idec", 2, "paper", study="graph-weight"), **variants("idec", 2, "paper", study="learning-rate")}
    stops = study_records(rows, "breastmnist").query("reading == 'stop' and fired == True and smallest_share < 0.05")
    counts = stops.groupby("label").size()
    text = " ".join((results_folder().parent / "README.md").read_text("utf-8").split())
    assert counts["weight 0.004 in both phases"] == 5 and "ends five of ten runs there" in text
    assert all(counts[f"lr {lr}"] == 10 for lr in (.002, .003, .004, .005)) and "at learning rates of 0.002 and more" in text


def test_the_readmes_verdict_is_that_of_the_records():
    """The number of settings, that none gains on the mean, and what the undivided sum of the graph gives."""
    frame = study_records(variants("idec", 2, "paper", study="all"), "breastmnist").drop_duplicates(["file", "reading"])
    text = " ".join((results_folder().parent / "README.md").read_text("utf-8").split())
    assert (frame.groupby("settings")["seed"].nunique() == 10).all() and f"in none of {frame['settings'].nunique()} settings" in text
    last = frame[frame["reading"] == "last"]
    ends = last.pivot(index="seed", columns="settings", values="accuracy")
    plain = ends[last.loc[last["label"] == "IDEC", "settings"].iloc[0]]
    assert f"at {plain.mean():.0%}".replace("%", " %") in text
    low = [ttest_1samp(ends[s] - plain, 0).confidence_interval(0.95).low for s in ends if not ends[s].equals(plain)]
    assert max(low) <= 0, "a setting is better than plain IDEC"
    strong = last[last["label"].str.startswith("whole graph, sum")]
    assert f"{(strong['accuracy'] >= 0.70).sum()} of {len(strong)} runs end at 70 % or more" in text
    by_chance = (570 * (1 - strong["smallest_share"]) + 210 * strong["smallest_share"]) / 780
    assert (strong["accuracy"] - by_chance < 0.05).mean() > 0.7, "most are hardly better than random ones of the same sizes"


@pytest.mark.parametrize("data, task, k", [("busi", "3-class", 3), ("busi", "benign-malignant", 2), ("breastmnist", "binary-class", 2)])
def test_shuffled_labels_are_learnt_by_heart_and_at_chance_on_held_out_images(data, task, k):
    frame = study_records(variants("arcface", k, "paper", variant="ArcFace, shuffled labels"), data)
    frame = frame[frame["set"].str.contains(task)]
    assert frame["seed"].nunique() == 5
    mean = frame.groupby("reading")[["nmi", "balanced_accuracy", "auc"]].mean()
    for reading in ("held out, classifier", "held out, linear probe"):
        assert abs(mean.loc[reading, "balanced_accuracy"] - 1 / k) < 0.06 and abs(mean.loc[reading, "auc"] - 0.5) < 0.06
    assert mean.loc["held out, k-means", "nmi"] < 0.04
    assert mean.loc["training, classifier", "balanced_accuracy"] > 0.8, "what makes the control worth having"


def test_the_readmes_arcface_table_is_that_of_the_records():
    frame = study_records(variants("arcface", 3, "paper"), "busi")
    frame = frame[frame["set"].str.contains("3-class")]
    table, text = score_table(frame, "held out, k-means"), (results_folder().parent / "README.md").read_text("utf-8")
    assert (table["seeds"] == "5").all() and len(table) == 5
    assert markdown_table(table) in text, "README.md: run `make notebooks NAMES=index` and `make sync`"
    by_heart = frame[(frame["label"] == "ArcFace, shuffled labels") & (frame["reading"] == "training, k-means")]["nmi"].mean()
    assert f"(NMI {by_heart:.3f}, with those labels)" in text


def test_the_readmes_simclr_table_and_verdict_are_those_of_the_records():
    text = " ".join((results_folder().parent / "README.md").read_text("utf-8").split())
    small, auc = ["backbone=resnet18"], {}
    for title, data in (("BUSI, malignant or benign", "busi-benign-malignant-224x224"), ("mini-MIAS, abnormal or normal", "mias-normal-abnormal-224x224")):
        for method, reading in (("simclr", "held out, linear probe, C chosen"), ("supervised", "held out, classifier")):
            frame = study_records(variants(method, 2, "paper", settings=small), data)
            for label, part in frame[frame["reading"] == reading].groupby("label"):
                shown = [f"{part[k].mean():.3f} ± {part[k].std():.3f}" for k in ("auc", "balanced_accuracy", "accuracy")]
                assert f"| {title}: {label} | {len(part)} | {' | '.join(shown)} | " in text, "README.md: run `make notebooks NAMES=index` and `make sync`"
                auc[data[:4], label] = part.set_index("seed")["auc"]
    assert len(auc) == 10 and text.count("| BUSI, malignant or benign: ") == text.count("| mini-MIAS, abnormal or normal: ") == 5
    simclr, untrained, pixels = (auc["busi", label] for label in ("SimCLR", "random encoder", "pixels"))
    assert f"an AUC of {simclr.mean():.2f}, {pixels.mean():.2f} and {untrained.mean():.2f} over ten seeds" in text
    assert f"on the same three SimCLR has {simclr[:3].mean():.2f}" in text
    lead = simclr - untrained
    assert f"The first three seeds made that lead {lead[:3].mean():.2f}, seven new ones {lead[3:].mean():.2f}" in text
    photographs = study_records(variants("arcface", 2, "paper", variant="ImageNet features"), "busi-benign-malignant-224x224")
    reached = photographs[photographs["reading"] == "held out, linear probe"]["auc"].mean()
    assert f"(and sees 224 pixels) reach {reached:.2f} over the first five seeds, where SimCLR has {simclr[:5].mean():.2f}" in text
    small_scans = study_records(variants("simclr", 2, "paper", settings=small), "breastmnist-binary-class-28x28").query("reading == 'held out, linear probe, C chosen'")
    mean = small_scans.groupby("label")["auc"].mean()
    assert f"SimCLR is {mean['SimCLR'] - mean['random encoder']:.2f} above the untrained network and {mean['SimCLR'] - mean['pixels']:.2f} above the pixels" in text
    large = study_records(variants("simclr", 2, "paper"), "breastmnist-binary-class-28x28").query("reading == 'held out, linear probe, C chosen'")
    mean = large.groupby("label")["auc"].mean()
    assert f"with ResNet-50 it is {mean['random encoder'] - mean['SimCLR']:.2f} below the untrained one" in text


def test_markdown_table():
    table = pd.DataFrame({"top_accuracy": ["0.5"]}, index=pd.Index(["k-means"], name="method"))
    assert markdown_table(table).splitlines() == ["| method | top accuracy |", "| --- | --- |", "| k-means | 0.5 |"]


def test_read_records_filters(recorded):
    everything = read_records(recorded[0])
    assert set(everything["reading"]) == {"last", "stop", "guarded", "best_by_labels"} and set(everything["seed"]) == {0, 1}
    assert read_records(recorded[0], data="breastmnist").empty and read_records(recorded[0], labels=["other"]).empty
    assert len(read_records(recorded[0], data="phantom", method="idec", labels=["tiny"])) >= 6


@pytest.mark.parametrize("text, why", [("", "Expecting value"), ("[]", "no attribute"), ("{}", "it lacks code, data, label"), ('{"label": "x"', "Expecting")])
def test_a_damaged_record_is_named(recorded, tmp_path, text, why):
    shutil.copytree(recorded[0], tmp_path / "copy")
    file = next((tmp_path / "copy").rglob("seed-1.json"))
    file.write_text(text)
    with pytest.raises(ValueError, match=f"the record .*seed-1.json is damaged .*{why}.*remove it, or run these settings again"):
        read_records(tmp_path / "copy")


def test_study_records_go_by_settings_not_by_label(images, tmp_path):
    estimators = {"second": IDEC(3, **TINY, graph_weight=0.5), "first": IDEC(3, **TINY), "never run": IDEC(3, **TINY, lr=0.5)}
    assert experiments.study_records(estimators, "phantom", tmp_path).empty
    for label, name in (("A", "first"), ("B", "second")):
        run(estimators[name], images, seeds=1, label=label, results=tmp_path, say=None)
    found = experiments.study_records(estimators, "phantom", tmp_path)
    assert found["label"].unique().tolist() == ["second", "first"]
    assert found["settings"].unique().tolist() == [settings_hash(estimators[n]) for n in ("second", "first")]
    assert set(found["set"]) == {record_folder(estimators["first"], images, tmp_path).parent.name}


def test_guarded_reading(images, tmp_path):
    record, = run(IDEC(3, **{**TINY, "tol": 1.0, "min_share": 1.0, "max_epochs": 2}), images, seeds=1, results=tmp_path, say=None)
    assert record["scores"]["stop"]["epoch"] == 1 and record["scores"]["stop"]["fired"]
    assert record["scores"]["guarded"]["epoch"] == 2 and not record["scores"]["guarded"]["fired"]  # no third holds all
    assert record["scores"]["guarded"]["accuracy"] == record["scores"]["last"]["accuracy"]
    record, = run(IDEC(3, **{**TINY, "tol": 1.0, "min_share": 0.0}), images, seeds=1, results=tmp_path, say=None)
    assert record["scores"]["guarded"] == record["scores"]["stop"] and record["scores"]["guarded"]["fired"]


def test_record_says_whether_pretraining_was_shared(images, tmp_path):
    model = IDEC(3, **TINY, pretrain_dir=str(tmp_path / "shared"))
    first, = run(model, images, seeds=1, results=tmp_path / "a", say=None)
    second, = run(model, images, seeds=1, results=tmp_path / "b", say=None)
    assert (first["pretrain_shared"], second["pretrain_shared"]) == (False, True)
    assert first["scores"] == second["scores"] and first["settings"] == second["settings"] and "pretrain_dir" not in first["settings"]


def test_papers_tables():
    table = paper_table("idec-table2").set_index("method")["acc_percent"]
    assert table["k-means"] == 55.00 and table["IDEC + graph"] == 72.05 and len(table) == 5
    assert len(paper_table("idec-table3")) == 10
    with pytest.raises(FileNotFoundError, match="idec-table2"):
        paper_table("no-such-table")


def test_results_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("BC_CLUST_RESULTS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert results_folder() == tmp_path / "results"
    (tmp_path / "settings.ini").touch(), (tmp_path / "bc_clust").mkdir(), (tmp_path / "nbs").mkdir()
    monkeypatch.chdir(tmp_path / "nbs")
    assert results_folder() == tmp_path / "results"
    monkeypatch.setenv("BC_CLUST_RESULTS", str(tmp_path / "other"))
    assert results_folder() == tmp_path / "other"


def test_report_is_whole_and_escaped(tmp_path):
    page = write_report(tmp_path / "sub" / "r.html", "a < b", ["x & y", pd.DataFrame({"n": [1]}), "<figure>kept</figure>"])
    text = page.read_text("utf-8")
    assert "<title>a &lt; b</title>" in text and "<p>x &amp; y</p>" in text and "<figure>kept</figure>" in text
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>") and "<td>1</td>" in text


# --- the committed records ------------------------------------------------------------------------------------------

def committed():
    return sorted((results_folder()).glob("*/*/*/seed-*.json"))


def test_committed_records_are_whole_and_fresh():
    files = [f for f in committed() if "demo" not in f.parts]
    assert files, "results/ holds no records"
    digests = {type(e).__name__: code_digest(e) for e in (ArcFace(), IDEC(), KMeans(), SimCLR(), SoftmaxClassifier(), ContrastiveAutoencoder(), ConvClassifier())}
    for file in files:
        record = json.loads(file.read_text("utf-8"))
        assert file.parent.name == settings_hash_of(record), f"{file}: settings and folder disagree"
        assert record["code"] == digests[record["method"]], (
            f"{file} is stale: the method's code changed; run again the commands named in the method's notebook")
        stored = np.load(file.with_name(file.name.replace(".json", ".labels.npz")), allow_pickle=False)
        rows = [*stored["train"], *stored["test"]] if "test" in stored else range(len(stored["labels"]))
        assert sorted(rows) == list(range(record["data"]["n"])), file


def settings_hash_of(record):
    import hashlib
    text = json.dumps([record["method"], record["settings"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def test_committed_scores_follow_from_the_committed_labels(breastmnist):
    for file in committed():
        record = json.loads(file.read_text("utf-8"))
        if record["data"]["name"] != "breastmnist":
            continue
        assert record["data"]["sha256"] == breastmnist.sha256
        stored, y = np.load(file.with_name(file.name.replace(".json", ".labels.npz")), allow_pickle=False), breastmnist.labels
        found = ({"held out, k-means": (y[stored["test"]], stored["held out, kmeans"]), "held out, HDBSCAN": (y[stored["test"]], stored["held out, hdbscan"])}
                 if "test" in stored else {"last": (y, stored["labels"])})
        if "clusters" in stored:
            found |= {f"{part}, clusters": (y[stored[rows]], stored["clusters"][stored[rows]]) for part, rows in (("training", "train"), ("held out", "test"))}
        for reading, (true, labels) in found.items():
            scores = clustering_scores(true, labels)
            for name in ("accuracy", "balanced_accuracy", "nmi", "ari", "majority_share"):
                assert record["scores"][reading][name] == pytest.approx(scores[name], abs=1e-12), (file, reading, name)


# --- estimators that are trained with labels ---------------------------------------------------------------------------

class Taught(ClassifierMixin, TransformerMixin, BaseEstimator):
    """The class mean of what it was given, remembering what that was; its embedding is the label on rows it has seen, noise elsewhere."""
    calls = []

    def __init__(self, random_state=None, width=3):
        self.random_state, self.width = random_state, width

    def fit(self, X, y):
        self.X_, self.y_, self.classes_ = X, y, np.unique(y)
        Taught.calls.append((X, y, self.random_state))
        return self

    def transform(self, X):
        rng, seen = np.random.default_rng(self.random_state), {row.tobytes(): label for row, label in zip(self.X_, self.y_)}
        return np.array([10 * np.eye(self.width)[seen[row.tobytes()]] if row.tobytes() in seen else np.zeros(self.width) for row in X]
                        ) + rng.normal(size=(len(X), self.width))

    def predict_proba(self, X):
        Z = self.transform(X)
        return np.exp(Z) / np.exp(Z).sum(1, keepdims=True)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    images = phantom(n=150, size=12, random_state=1)
    images = dataclasses.replace(images, groups=np.arange(150) // 2)
    folder = tmp_path_factory.mktemp("taught")
    Taught.calls.clear()
    records = run(Taught(), images, seeds=2, label="taught", results=folder, say=None)
    return images, folder, records, list(Taught.calls)


def test_a_classifier_is_fitted_on_one_grouped_split(taught):
    images, folder, records, calls = taught
    X = images.images.reshape(150, -1) / 255
    for seed, (X_fit, y_fit, random_state) in enumerate(calls):
        train, test = next(grouped_folds(images.labels, images.groups, 5, random_state=seed))
        assert random_state == seed and np.array_equal(X_fit, X[train]) and np.array_equal(y_fit, images.labels[train])
        stored = np.load(record_folder(Taught(), images, folder) / f"seed-{seed}.labels.npz", allow_pickle=False)
        assert np.array_equal(stored["test"], test) and np.array_equal(stored["train"], train)
        assert not set(images.groups[train]) & set(images.groups[test]) and len(test) == len(stored["held out, kmeans"])
        kmeans, dense = cluster_embedding(stored["held out, projection"], 3, seed)
        assert adjusted_rand_score(kmeans, stored["held out, kmeans"]) == 1 and np.array_equal(dense, stored["held out, hdbscan"])
        assert stored["held out, answers"].shape == (len(test), 3)
        scores = classification_scores(images.labels[test], stored["held out, answers"])
        assert records[seed]["scores"]["held out, classifier"]["auc"] == pytest.approx(scores["auc"], abs=0.01)
    assert not np.array_equal(calls[0][1], calls[1][1])
    assert records[0]["data"]["protocol"] == PROTOCOL


def test_training_and_held_out_are_scored_apart(taught):
    """What remembers is perfect on what it saw and at chance on what it did not."""
    images, folder, records, _ = taught
    for record in records:
        seen, new = ({name: record["scores"][f"{part}, {name}"] for name in ("k-means", "classifier", "linear probe", "HDBSCAN")}
                     for part in ("training", "held out"))
        assert seen["k-means"]["nmi"] == seen["classifier"]["accuracy"] == seen["linear probe"]["accuracy"] == 1
        assert new["k-means"]["nmi"] < 0.2 and new["classifier"]["auc"] < 0.7 and new["linear probe"]["balanced_accuracy"] < 0.6
        assert seen["HDBSCAN"]["n_clusters"] == 3
    stored = np.load(record_folder(Taught(), images, folder) / "seed-1.labels.npz", allow_pickle=False)
    again = clustering_scores(images.labels[stored["test"]], stored["held out, kmeans"])
    assert all(records[1]["scores"]["held out, k-means"][k] == v for k, v in again.items())
    frame = read_records(folder)
    assert score_table(frame, "training, k-means").loc["taught", "accuracy"] == "1.000 ± 0.000"
    with pytest.raises(ValueError, match="No record has the reading 'last'; readings: training, k-means"):
        score_table(frame)


def test_a_record_of_another_protocol_is_stale(taught, monkeypatch):
    images, folder, records, _ = taught
    said = []
    assert run(Taught(), images, seeds=2, label="taught", results=folder, say=said.append) == records
    assert said == ["taught: 2 of 2 seeds are there, 0 to run"]
    monkeypatch.setitem(experiments.PROTOCOL, "min_cluster_size", 12)
    again = run(Taught(), images, seeds=[0], label="taught", results=folder, say=said.append)
    assert "seed-0.json is stale (the data changed)" in said[1] and again[0]["data"]["protocol"]["min_cluster_size"] == 12


def test_cluster_embedding_and_noise():
    rng = np.random.default_rng(0)
    Z = np.concatenate([rng.normal(c, 0.1, (40, 4)) for c in (0, 5, 10)] + [rng.uniform(-5, 15, (5, 4))])
    kmeans, dense = cluster_embedding(Z, 3, seed=0)
    assert len(np.unique(kmeans)) == 3 and len(np.unique(dense[:120])) == 3 and (dense[120:] == -1).any()
    assert np.array_equal(kmeans, cluster_embedding(Z, 3, seed=0)[0])
    assert experiments._possible("drop", np.array([-1, -1])) == "own" and experiments._possible("drop", np.array([-1, 0])) == "drop"


def test_what_neither_clusters_nor_classifies_is_refused(images, tmp_path):
    with pytest.raises(TypeError, match="takes estimators that cluster, or that classify and transform"):
        run(PCA(2), images, seeds=1, results=tmp_path, say=None)


def test_threads_are_those_of_the_fit_and_of_nothing_else(images, tmp_path):
    seen = []

    class Spy(IDEC):
        def fit(self, X, y=None):
            seen.append(torch.get_num_threads())
            return super().fit(X)

        def transform(self, X):
            seen.append(torch.get_num_threads())
            return super().transform(X)

    before = torch.get_num_threads()
    record, = run(Spy(3, **TINY), images, seeds=1, results=tmp_path, threads=3, say=None)
    assert seen[0] == 3 and set(seen[1:]) == {1} and record["environment"]["threads"] == 3 and torch.get_num_threads() == before


def test_every_run_resumes_its_own_checkpoint(images, recorded, tmp_path, monkeypatch):
    model = IDEC(3, **TINY, checkpoint_dir=str(tmp_path / "ck"), resume=True)
    stop = model.get_params() | {"max_epochs": 1}
    records = run(model, images, seeds=2, results=tmp_path / "r", say=None)
    assert [r["scores"] for r in records] == [r["scores"] for r in recorded[1]], "checkpoints change no result"
    assert len({f.parent for f in (tmp_path / "ck").rglob("*.pt")}) == 2, "a folder for each seed"
    run(IDEC(**stop), images, seeds=2, results=tmp_path / "r", say=None)   # other settings: neither error nor the same file
    assert len({f.parent for f in (tmp_path / "ck").rglob("*.pt")}) == 4
    files = sorted((tmp_path / "r" / "idec").rglob("seed-1.json"))
    for file in files:
        file.unlink()
    epochs = []
    monkeypatch.setattr(IDEC, "_checkpoint", lambda self, phase, epoch, force: epochs.append((phase, epoch)))
    assert run(model, images, seeds=2, results=tmp_path / "r", say=None)[1]["scores"] == records[1]["scores"]
    assert not epochs, "all epochs were there"
    monkeypatch.setattr(experiments, "code_digest", lambda estimator: "another code")
    assert run(model, images, seeds=[1], results=tmp_path / "r", say=None)[0]["code"] == "another code"
    assert len(epochs) >= 6, "what other code has left is not gone on with"


def test_a_replaced_record_takes_its_arrays_along(images, tmp_path):
    model = IDEC(3, **TINY)
    folder = record_folder(model, images, tmp_path)
    run(model, images, seeds=1, results=tmp_path, say=None)
    assert len(list(folder.glob("*.safetensors"))) == 2
    (folder / "seed-0.json").write_text("{}")
    run(model, images, seeds=1, results=tmp_path, say=None, keep=False)
    assert not list(folder.glob("*.safetensors")) and (folder / "seed-0.labels.npz").exists()


def test_readings_may_be_numpy_numbers(images, tmp_path):
    def count(estimator, images, train, test):
        return {"n": np.int64(len(test)), "share": np.float32(0.5)}
    tiny = SimCLR("resnet18", image_size=16, n_epochs=0, warmup_epochs=0, precision="float32", device="cpu")
    record, = run(tiny, images, seeds=1, results=tmp_path, say=None, keep=False, readings={"counted": count})
    assert record["scores"]["counted"] == {"n": 18, "share": 0.5}


def test_images_to_learn_from_have_to_be_alike_before_a_fit(images, placed, tmp_path):
    colour = dataclasses.replace(images, images=np.repeat(images.images[..., None], 3, -1))
    with pytest.raises(ValueError, match="other colour channels .*load both alike"):
        run(SimCLR(), images, seeds=1, results=tmp_path, pretrain=colour)
    with pytest.raises(ValueError, match=r"other sizes .*\(10, 10\) and \(12, 12\)"):
        run(placed[2], images, seeds=1, results=tmp_path, pretrain=phantom(n=40, size=10))
    with pytest.raises(ValueError, match="load both alike"):
        run(SimCLR(), dataclasses.replace(images, images=images.images.reshape(90, -1).astype(np.float32), masks=None), seeds=1, results=tmp_path, pretrain=images)
    assert not list(tmp_path.iterdir())


def test_learning_from_images_held_out_is_said(images, tmp_path):
    tiny = SimCLR("resnet18", image_size=16, n_epochs=0, warmup_epochs=0, precision="float32", device="cpu")
    for other, said in ((images, True), (phantom(n=90, size=12, random_state=3), False)):
        lines = []
        run(tiny, images, seeds=1, results=tmp_path, say=lines.append, keep=False, pretrain=other)
        assert any("those held out included" in line for line in lines) == said


def test_a_record_names_the_weights_that_a_network_started_with(images, tmp_path):
    tiny = ArcFace(weights=None, image_size=32, head_epochs=1, finetune_epochs=0, precision="float32", device="cpu")
    record, = run(tiny, images, seeds=1, results=tmp_path, say=None)
    assert record["weights"] == "random initialisation" and record["settings"]["margin"] == 0.5
    stored = record_folder(tiny, images, tmp_path)
    assert {f.name for f in stored.iterdir()} == {f"seed-0.{e}" for e in ("json", "history.csv", "labels.npz", "embedding.safetensors",
                                                                         "model.safetensors")}
    assert safetensors.numpy.load_file(stored / "seed-0.embedding.safetensors")["embedding"].shape == (90, 64)
    assert score_table(read_records(tmp_path), "held out, k-means").loc["ArcFace", "seeds"] == "1"


# ---- clusterers that place new images ------------------------------------------------------------


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    images = phantom(n=150, size=12, random_state=1)
    images = dataclasses.replace(images, groups=np.arange(150) // 2)
    folder = tmp_path_factory.mktemp("placed")
    model = ContrastiveAutoencoder(5, latent_dim=6, pretrain_epochs=20, cluster_epochs=2, batch_size=16, n_init=2, precision="float32", device="cpu")
    return images, folder, model, run(model, images, seeds=2, label="placed", results=folder, say=None)


def test_a_clusterer_that_asks_for_it_is_fitted_on_one_grouped_split(placed):
    images, folder, model, records = placed
    stored = np.load(record_folder(model, images, folder) / "seed-1.labels.npz", allow_pickle=False)
    train, test = next(grouped_folds(images.labels, images.groups, 5, random_state=1))
    assert np.array_equal(stored["train"], train) and np.array_equal(stored["test"], test) and records[1]["data"]["protocol"] == PROTOCOL
    again = model.set_params(random_state=1).fit(images.images[train])
    model.set_params(random_state=None)
    assert np.array_equal(stored["clusters"], again.predict(images.images)) and np.array_equal(stored["label_path"], again.label_path_)
    history = pd.read_csv(record_folder(model, images, folder) / "seed-1.history.csv")
    found = clustering_scores(images.labels[train], again.labels_)
    assert history["nmi"].iloc[-1] == pytest.approx(found["nmi"], rel=1e-5) and history["nmi"].isna().sum() == 20


@pytest.mark.parametrize("part", ["training", "held out"])
def test_clusters_are_judged_one_to_one_by_vote_and_beside_lots(placed, part):
    images, folder, model, records = placed
    y, scores = images.labels, records[0]["scores"]
    stored = np.load(record_folder(model, images, folder) / "seed-0.labels.npz", allow_pickle=False)
    train, rows, clusters = stored["train"], stored["train" if part == "training" else "test"], stored["clusters"]
    one, vote = scores[f"{part}, clusters"], scores[f"{part}, clusters by vote"]
    assert {k: one[k] for k in ("accuracy", "nmi", "ari")} == {k: v for k, v in clustering_scores(y[rows], clusters[rows]).items() if k in ("accuracy", "nmi", "ari")}
    called = [np.bincount(y[train][clusters[train] == c], minlength=3).argmax() for c in clusters[rows]]
    assert vote["accuracy"] == np.mean(called == y[rows]) and vote["majority_share"] == one["majority_share"]
    if part == "training":
        assert vote["accuracy"] == pytest.approx(one["purity"])
    lot, lot_vote = scores[f"{part}, random clusters"], scores[f"{part}, random clusters by vote"]
    assert abs(lot["ari"]) < 0.02 and lot["n_clusters"] == one["n_clusters"] and lot["smallest_share"] == pytest.approx(one["smallest_share"])
    if part == "training":   # nobody votes for himself in the held-out part, so lots gain nothing there
        assert lot_vote["accuracy"] == pytest.approx(permutation_baseline(y[rows], clusters[rows]).loc["purity", "mean"], abs=0.005)
        assert lot_vote["accuracy"] > lot_vote["majority_share"]
    else:
        assert abs(lot_vote["accuracy"] - lot_vote["majority_share"]) < 0.03


def test_kmeans_on_pixels_stands_beside_with_as_many_clusters(placed):
    images, _, _, records = placed
    train, test = next(grouped_folds(images.labels, images.groups, 5, random_state=0))
    flat = images.images.reshape(150, -1) / 255
    kmeans = KMeans(5, n_init=PROTOCOL["n_init"], random_state=0).fit(flat[train])
    for part, rows in (("training", train), ("held out", test)):
        expected = clustering_scores(images.labels[rows], kmeans.predict(flat[rows]), flat[rows])
        found = records[0]["scores"][f"{part}, k-means on pixels"]
        assert found["ari"] == pytest.approx(expected["ari"]) and found["silhouette"] == pytest.approx(expected["silhouette"])
    assert records[0]["scores"]["held out, k-means on PCA"]["n_clusters"] <= 5
    assert {"held out, 5 nearest", "held out, linear probe", "training, 5 nearest"} <= set(records[0]["scores"])
    assert not any("classifier" in name and "SGD" not in name for name in records[0]["scores"]), "its soft assignments are no answers"


def test_cluster_table_says_what_the_records_say(placed):
    images, folder, _, records = placed
    table, frame = cluster_table(read_records(folder)), read_records(folder)
    assert list(table.index) == ["placed", "k-means on pixels", "k-means on PCA", "random clusters"] and set(table["seeds"]) == {"2"}
    for row, reading in (("placed", "clusters"), ("k-means on PCA", "k-means on PCA"), ("random clusters", "random clusters")):
        votes = [r["scores"][f"held out, {reading} by vote"]["accuracy"] for r in records]
        assert table.loc[row, "by vote"] == f"{np.mean(votes):.3f} ± {np.std(votes, ddof=1):.3f}"
        nmi = [r["scores"][f"held out, {reading}"]["nmi"] for r in records]
        assert table.loc[row, "nmi"] == f"{np.mean(nmi):.3f} ± {np.std(nmi, ddof=1):.3f}"
    lots = [r["scores"]["held out, random clusters by vote"]["accuracy"] for r in records]
    assert table.loc["placed", "random, by vote"] == f"{np.mean(lots):.3f} ± {np.std(lots, ddof=1):.3f}"
    other = cluster_table(pd.concat([frame, frame.assign(settings="other", nmi=frame["nmi"] + 1)]))
    assert list(other.index[:2]) == ["placed", "placed"] and other["nmi"].iloc[0] == table["nmi"].iloc[0] and set(other["seeds"]) == {"2"}, "two settings are two rows"
    assert table.loc["placed", "clusters"] == "5.0 ± 0.0" and not cluster_table(frame, "training").equals(table)


def test_an_elbow_and_another_set_to_learn_from(placed, tmp_path):
    images, _, model, _ = placed
    elbow = ContrastiveAutoencoder("elbow", **{k: v for k, v in model.get_params().items() if k != "n_clusters"})
    record, = run(elbow, images, seeds=[0], results=tmp_path, say=None, keep=False)
    assert 2 <= record["scores"]["training, clusters"]["n_clusters"] <= 20 and record["settings"]["n_clusters"] == "elbow"
    other = phantom(n=60, size=12, random_state=2)
    away, = run(model, images, seeds=[0], results=tmp_path, say=None, keep=False, pretrain=other)
    stored = np.load(record_folder(model, images, tmp_path, other) / "seed-0.labels.npz", allow_pickle=False)
    assert "label_path" not in stored and "nmi" not in pd.read_csv(record_folder(model, images, tmp_path, other) / "seed-0.history.csv")
    assert away["data"]["pretrain"]["n"] == 60 and away["scores"]["held out, clusters"]["n_clusters"] <= 5


def test_a_line_of_a_table_is_of_one_set(images, tmp_path):
    model = KMeans(3, n_init=1)
    run(model, images, seeds=2, results=tmp_path, say=None)
    small = phantom(n=90, size=10, random_state=0)
    run(model, small, seeds=2, results=tmp_path, say=None)
    both, one = (study_records({"k-means": model}, name, tmp_path) for name in ("phantom", f"phantom-{images.task}-12x12"))
    assert set(one["set"]) == {f"phantom-{images.task}-12x12"} and len(both) == 2 * len(one)
    assert score_table(one).loc["k-means", "seeds"] == "2"
    for mixed in (both, both[(both["seed"] == 0) == (both["set"] == one["set"].iloc[0])]):   # seeds that come twice, and seeds of another set
        with pytest.raises(ValueError, match=r"k-means: a line of a table is of one set.* phantom-3-class-10x10, phantom-3-class-12x12\. Choose"):
            score_table(mixed)
    with pytest.raises(ValueError, match="seeds that come more than once"):
        score_table(pd.concat([one, one]).drop(columns="set"))
