"""The command line: names, settings, exit codes, errors without tracebacks, and the demo on simulated images."""
import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from bc_clust import cli
from bc_clust.cli import METHODS, _label, _seeds, app, main, parse_settings, variants
from bc_clust.experiments import settings_hash
from bc_clust.generated import OF_DRAWN

shell = CliRunner()
TINY = [word for text in ("hidden_dims=(16,)", "pretrain_epochs=2", "max_epochs=2", "n_init=1") for word in ("--set", text)]


def invoke(*words):
    return shell.invoke(app, [str(w) for w in words])


def run_main(monkeypatch, capsys, *words):
    "What a shell sees: exit code, standard output, standard error."
    monkeypatch.setattr(sys, "argv", ["bc_clust", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    out = capsys.readouterr()
    return stop.value.code or 0, out.out, out.err


def test_help_and_version_are_quick_to_import():
    code = "import sys, bc_clust.cli; assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert "demo" in invoke("--help").output and invoke("--version").output.strip().count(".") == 2


@pytest.mark.parametrize("words, part", [
    (["run", "idek"], "did you mean 'idec'"), (["run", "idec", "--profile", "fast"], "quick or paper"),
    (["run", "simclr", "--pretrain-task", "lesion-crops"], "the set that --pretrain names"), (["run", "idec", "--variant", "IDEC+graph"], "did you mean 'IDEC + graph'"), (["run", "idec", "--seeds", "x"], "list (0,3,7; of one seed: 3,)"),
    (["run", "idec", "--study", "graph-wait"], "did you mean 'graph-weight'"), (["run", "kmeans", "--study", "x"], "k-means has no studies"),
    (["run", "idec", "--seeds", "0"], "at least one"), (["run", "idec", "--set", "lrr=1"], "did you mean 'lr'"),
    (["run", "simclr", "--study", "temperature", "--set", "temperature=0.3"], "has its own temperature"), (["run", "idec", "--label", "mine"], "choose one with --variant"),
    (["run", "arcface", "--data", "phantom", "--pretrained", "here"], "none to keep"), (["run", "contrastive-ae", "--data", "phantom", "--grad-cam"], "contrastive-ae has none"),
    (["run", "simclr", "--set", "random_state=7"], "an option of its own here: --seeds"), (["run", "simclr", "--set", "device=cuda"], "here: --device"),
    (["run", "idec", "--set", "lr"], "name=value"), (["nothing"], "No such command")])
def test_usage_errors_exit_with_2(words, part):
    result = invoke(*words)
    text = " ".join((result.output + getattr(result, "stderr", "")).replace("│", " ").split())
    assert result.exit_code == 2 and part in text


@pytest.mark.parametrize("words, part", [
    (["run", "idec", "--data", "nothere"], "unknown image set 'nothere'"), (["data", "get", "phantmo"], "phantom"),
    (["run", "idec", "--data", "phantom", "--device", "tpu"], "device='tpu'"),
    (["run", "idec", "--data", "phantom", "--set", "lr=-1"], "lr=-1: use a number above 0")])
def test_failures_exit_with_1_in_one_line(monkeypatch, capsys, tmp_path, words, part):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_main(monkeypatch, capsys, *words)
    last = err.splitlines()[-1]  # before it there may be a progress bar
    assert code == 1 and last.startswith("bc_clust: error: ") and part in last and "Traceback" not in err
    assert not list(tmp_path.rglob("*.json"))


def test_debug_brings_the_traceback(monkeypatch):
    monkeypatch.setenv("BC_CLUST_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["bc_clust", "data", "get", "nothere"])
    with pytest.raises(ValueError, match="nothere"):
        main()


def test_settings_are_literals_or_words():
    accepted = ["a", "b", "c", "d"]
    assert parse_settings(["a=0.5", "b=None", "c=(1, 2)", "d=guarded"], accepted) == {"a": 0.5, "b": None, "c": (1, 2), "d": "guarded"}


def test_a_row_is_named_after_settings_that_it_has():
    named = {name: _label(name, estimator, ["n_epochs=30", "n_epochs=20", "backbone=resnet18"]) for name, estimator in variants("simclr", 2, settings=["n_epochs=30", "n_epochs=20", "backbone=resnet18"]).items()}
    assert named["SimCLR"] == "SimCLR, n_epochs=20, backbone=resnet18" and named["random encoder"] == "random encoder, backbone=resnet18"


def test_variants():
    named = variants("idec", 3, "paper", settings=["max_epochs=9", "graph_weight=0.5"])
    assert list(named) == ["AE + k-means", "DEC", "IDEC", "IDEC + graph"]
    assert named["AE + k-means"].max_epochs == 0 and named["IDEC"].max_epochs == 9  # a variant stays what it is
    assert named["IDEC"].graph_weight == 0 and named["IDEC + graph"].graph_weight == 0.5
    assert named["DEC"].stop_rule is None and named["DEC"].n_clusters == 3 and named["DEC"].pretrain_epochs == 400
    only = variants("idec", 2, variant="IDEC", settings=["graph_weight=0.5"])
    assert list(only) == ["IDEC"] and only["IDEC"].graph_weight == 0.5  # named outright, the user has the last word
    assert variants("kmeans", 2)["k-means"].n_init == 20


def test_run_records_prints_and_continues(tmp_path):
    words = ["run", "idec", "--data", "phantom", "--size", 12, "--variant", "IDEC + graph", "--results", tmp_path, *TINY]
    first = invoke(*words, "--seeds", 1, "--label", "tiny")
    assert first.exit_code == 0, first.output
    assert "tiny: 0 of 1 seeds are there" in first.output and "majority_share" in first.output
    assert "\ntiny " in first.output and "\nIDEC + graph " not in first.output, "the row has the name it was given"
    assert "peeking, not a result" in first.output and "stop rule fires" in first.output
    second = invoke(*words, "--seeds", 2, "--label", "tiny")
    assert "tiny: 1 of 2 seeds are there, 1 to run" in second.output
    page = tmp_path / "r.html"
    report = invoke("report", "--results", tmp_path, "--html", page)
    assert report.exit_code == 0 and "== phantom" in report.output and "tiny" in page.read_text("utf-8")


@pytest.mark.parametrize("text, seeds", [("3", [0, 1, 2]), ("3,7", [3, 7]), ("3,", [3]), ("0,", [0])])
def test_seeds_are_a_number_or_a_list(text, seeds):
    assert _seeds(text) == seeds


def test_run_of_a_study_shares_pretraining(tmp_path):
    words = ["run", "idec", "--data", "phantom", "--size", 12, "--study", "graph-weight", "--results", tmp_path, *TINY, "--no-keep"]
    result = invoke(*words, "--seeds", 1)
    assert result.exit_code == 0, result.output
    records = [json.loads(f.read_text()) for f in tmp_path.rglob("seed-0.json")]
    assert sorted(r["settings"]["graph_weight"] for r in records) == sorted([.001] + 2 * [.002, .003, .004, .005])
    assert sorted(r["pretrain_shared"] for r in records) == 5 * [False] + 4 * [True]  # five weights in phase 1
    assert "weight 0.004 in both phases" in result.output and not list(tmp_path.rglob("*.pt"))


def test_run_measures_grad_cam_where_asked(tmp_path):
    words = ["run", "supervised", "--variant", "supervised", "--data", "phantom", "--task", "benign-malignant", "--size", 16, "--seeds", 1, "--results", tmp_path,
             "--no-keep", *(w for text in ("image_size=16", "n_epochs=1", "batch_size=256") for w in ("--set", text))]
    plain, asked, again = invoke(*words), invoke(*words, "--grad-cam"), invoke(*words, "--grad-cam")
    assert plain.exit_code == asked.exit_code == again.exit_code == 0, asked.output
    assert "Grad-CAM" not in plain.output and "a reading is missing" in asked.output and "1 of 1 seeds are there" in again.output
    table = asked.output.split("Grad-CAM on the masks of held-out images")[1]
    assert "pointing_game_centre" in table and "nan" not in table
    record, = (json.loads(f.read_text()) for f in tmp_path.rglob("seed-0.json"))
    assert f"{record['scores']['Grad-CAM']['energy']:.3f}" in table


def test_grad_cam_is_refused_before_a_fit(tmp_path):
    other = invoke("run", "arcface", "--data", "phantom", "--grad-cam", "--results", tmp_path)
    assert other.exit_code != 0 and "arcface has none" in other.output
    unmarked = invoke("run", "simclr", "--data", "digits", "--grad-cam", "--results", tmp_path)
    assert unmarked.exit_code != 0 and "no outlines of lesions" in f"{unmarked.output}{unmarked.exception}" and not list(tmp_path.iterdir())


def test_learning_from_another_task_of_a_set(tmp_path):
    words = ["run", "simclr", "--data", "phantom", "--size", 16, "--seeds", 1, "--results", tmp_path, "--no-keep", "--variant", "SimCLR", "--pretrained", tmp_path / "shared",
             *(w for text in ("backbone=resnet18", "image_size=16", "batch_size=32", "n_epochs=1", "warmup_epochs=0") for w in ("--set", text))]
    elsewhere = [*words, "--pretrain", "phantom", "--pretrain-task"]
    first, second = invoke(*elsewhere, "binary-class"), invoke(*elsewhere, "benign-malignant")
    assert first.exit_code == second.exit_code == 0, first.output + second.output
    records = {r["data"]["pretrain"]["task"]: r for r in (json.loads(f.read_text()) for f in tmp_path.rglob("seed-0.json"))}
    assert set(records) == {"binary-class", "benign-malignant"}
    for reading in ("linear probe", "SGD classifier", "linear probe, C chosen"):   # what was printed of each classifier
        shown = first.output.split(f"held out, {reading}\n")[1].split("\n\n")[0]
        assert shown.split("\n")[0].split() == ["seeds", "accuracy", "majority_share", "balanced_accuracy", "f1", "auc"]
        scores = records["binary-class"]["scores"][f"held out, {reading}"]
        assert shown.split()[-6:] == ["1", *(f"{scores[k]:.3f}" for k in ("accuracy", "majority_share", "balanced_accuracy", "f1", "auc"))]
    third = invoke(*elsewhere, "binary-class", "--task", "benign-malignant")   # judged on other labels: the network is there
    assert third.exit_code == 0 and sorted(json.loads(f.read_text())["pretrain_shared"] for f in tmp_path.rglob("seed-0.json")) == [False, False, True]


def test_run_of_a_clusterer_that_draws(tmp_path, monkeypatch):
    monkeypatch.setitem(OF_DRAWN, "n_epochs", 1)
    words = ["run", "contrastive-ae", "--data", "phantom", "--size", 12, "--seeds", 1, "--results", tmp_path, "--no-keep", "--variant", "contrastive autoencoder",
             *(w for text in ("pretrain_epochs=1", "cluster_epochs=1", "n_init=1") for w in ("--set", text))]
    plain, asked, again = invoke(*words), invoke(*words, "--generated"), invoke(*words, "--generated")
    assert plain.exit_code == asked.exit_code == again.exit_code == 0, asked.output
    assert "trained on" not in plain.output and "a reading is missing" in asked.output and "1 of 1 seeds are there" in again.output
    record, = (json.loads(f.read_text()) for f in tmp_path.rglob("seed-0.json"))
    scores = record["scores"]
    assert record["settings"]["n_clusters"] == 3 and "votes" in scores
    line = lambda title, row: next(x for x in asked.output.split(f"\n{title}\n")[1].splitlines() if x.startswith(row))
    assert f"{scores['held out, drawing']['mse']:.3f}" in line("held out, drawing", "contr") and f"{scores['held out, 5 nearest on z']['auc']:.3f}" in line("held out, 5 nearest on z", "contr")
    assert f"{scores['held out, trained on drawn']['auc']:.3f}" in line("held out, trained on drawn", "contr")
    for row, reading in (("contr", "clusters"), ("k-means on pixels", "k-means on pixels")):
        shown = line("clusters of held-out images", row)
        assert f"{scores[f'held out, {reading}']['nmi']:.3f}" in shown and f"{scores[f'held out, {reading} by vote']['accuracy']:.3f}" in shown
    refused = invoke("run", "idec", "--data", "phantom", "--generated", "--results", tmp_path / "other")
    assert refused.exit_code != 0 and "idec draws none" in refused.output and not (tmp_path / "other").exists()


def test_every_variant_and_study_of_a_method_has_settings_of_its_own():
    for method in METHODS:
        for profile in ("quick", "paper"):
            assert variants(method, 3, profile)
    studies = {name: variants("contrastive-ae", 3, "paper", study=name) for name in ("defects", "balance")}
    main = variants("contrastive-ae", 3, "paper")
    assert main["contrastive autoencoder"].n_clusters == 3 and main["contrastive autoencoder, elbow"].n_clusters == "elbow"
    hashes = [settings_hash(e) for rows in (main, *studies.values()) for e in rows.values()]
    assert len(hashes) == len(set(hashes))


@pytest.mark.parametrize("option, seeds_kept", [("--keep", [0]), ("--keep-all", [0, 1]), ("--no-keep", [])])
def test_run_keeps_the_models_asked_for(option, seeds_kept, tmp_path):
    result = invoke("run", "idec", "--data", "phantom", "--size", 12, "--variant", "IDEC", "--results", tmp_path, *TINY, "--seeds", 2, option)
    assert result.exit_code == 0, result.output
    for ending in ("model", "embedding"):
        assert sorted(f.name for f in tmp_path.rglob(f"*.{ending}.safetensors")) == [f"seed-{s}.{ending}.safetensors" for s in seeds_kept]


def test_all_studies_and_feature_tables():
    every = variants("idec", 2, "paper", study="all")
    assert {"20 neighbours", "lr 0.005", "weight 0.003", "decoder removed"} <= set(every)
    assert every["whole graph, sum"].graph_scope == "all" and every["whole graph, sum"].pretrain_epochs == 400


def test_run_standardises_feature_tables(tmp_path):
    result = invoke("run", "idec", "--data", "wdbc", "--variant", "IDEC", "--results", tmp_path, *TINY, "--seeds", 1)
    assert result.exit_code == 0, result.output
    record, = (json.loads(f.read_text()) for f in tmp_path.rglob("seed-0.json"))
    assert record["data"]["source"].endswith(", standardised")


def test_a_method_that_takes_labels_is_scored_on_a_held_out_fold(tmp_path):
    words = ("run", "arcface", "--data", "phantom", "--size", 32, "--seeds", 1, "--results", tmp_path, "--set", "weights=None",
             "--set", "image_size=32", "--set", "head_epochs=1", "--variant", "ArcFace, phase 1 only")
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    for title in ("training, k-means", "held out, k-means", "held out, HDBSCAN, noise dropped", "held out, classifier"):
        assert f"\n{title}\n" in result.output, title
    assert "auc" in result.output and "at the last epoch" not in result.output
    record = json.loads(next(tmp_path.glob("arcface/phantom*/*/seed-0.json")).read_text())
    assert record["settings"]["finetune_epochs"] == 0 and record["data"]["protocol"]["folds"] == 5
    invoke("run", "kmeans", "--data", "phantom", "--size", 32, "--seeds", 1, "--results", tmp_path)
    page = tmp_path / "page.html"
    only = invoke("report", "--results", tmp_path, "--html", page)
    assert only.exit_code == 0 and "<h3>held out, classifier</h3>" in page.read_text("utf-8")
    invoke(*words[:3], "phantom", "--task", "benign-malignant", *words[4:])
    assert invoke("report", "--results", tmp_path).output.count("\n== phantom-") == 2, "two questions about a set are two tables"
    both = invoke("report", "--results", tmp_path).output
    assert "at the last epoch" in both and "held out, linear probe" in both
    assert "no such setting" in invoke(*words, "--set", "n_clusters=3").output


def test_report_names_stale_records_and_missing_ones(tmp_path, monkeypatch, capsys):
    invoke("run", "kmeans", "--data", "phantom", "--size", 12, "--seeds", 1, "--results", tmp_path)
    file = next(tmp_path.rglob("seed-0.json"))
    file.write_text(file.read_text().replace('"code": "', '"code": "0'))
    assert "1 records are stale" in invoke("report", "--results", tmp_path).output
    code, _, err = run_main(monkeypatch, capsys, "report", "--results", tmp_path / "none")
    assert code == 1 and "no records in" in err and "bc_clust run" in err


def test_data_commands():
    listing = invoke("data", "list").output
    assert "phantom" in listing and "breastmnist" in listing and "CC BY 4.0" in listing
    checked = invoke("data", "check", "wdbc").output
    assert "sha256: " in checked and "212" in checked and "357" in checked
    asked = invoke("data", "check", "phantom", "--task", "benign-malignant", "--size", "32").output
    assert "class 1 malignant" in asked and "class 2" not in asked and "class 2" in invoke("data", "check", "phantom", "--size", "32").output


def test_demo_writes_a_report_and_says_where(tmp_path, monkeypatch):
    from bc_clust import data, idec
    monkeypatch.setattr(data, "load", fake_load(data.load))
    monkeypatch.setattr(idec, "QUICK", dict(hidden_dims=(16,), pretrain_epochs=2, max_epochs=2, n_init=1, precision="float32"))
    result = invoke("demo", "--out", tmp_path / "demo", "--seeds", "2")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "demo" / "report.html").read_text("utf-8")
    assert "simulated" in result.output.lower() or "phantom" in result.output
    assert "report: " in result.output and page.count("<figure") == 6 and page.count("data:image/png") == 6
    assert all(f'alt="{part}' in page for part in ("Two scatter", "One row", "A table", "Two rows", "Curves", "The share"))
    assert "IDEC + graph" in page and "majority share" in page
    other = invoke("demo", "--out", tmp_path / "demo", "--seeds", "1,")   # its figures need a model of this seed
    assert other.exit_code == 0, f"{other.output}{other.exception}"


def fake_load(load):
    "A load that has no network: BreastMNIST cannot be had, the phantom is small."
    from bc_clust.data import DataUnavailableError

    def fake(name, **kwargs):
        if name == "breastmnist":
            raise DataUnavailableError("breastmnist.npz is not at hand")
        return load(name, n=60, size=12, random_state=0)
    return fake


def test_interrupt_exits_with_130(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt
    monkeypatch.setattr(cli, "app", stop)
    code, _, err = run_main(monkeypatch, capsys, "demo")
    assert code == 130 and "same command goes on" in err
