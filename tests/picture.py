"""Draw nbs/images/overview.png, the picture of the README, from the records in results/: `make picture` runs this.

It needs the real BreastMNIST (`bc_clust data get breastmnist`), for the images in its left panel.
"""
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import safetensors.numpy
from matplotlib import pyplot as plt

from bc_clust.cli import variants
from bc_clust.data import load
from bc_clust.experiments import paper_table, study_records
from bc_clust.plots import plot_embedding, plot_images_by_cluster, plot_scores, tsne, use_style

ROOT = Path(__file__).resolve().parents[1]


def draw():
    "The figure: images by cluster, embedding by class, accuracies by seed."
    printed = paper_table("idec-rows", ROOT / "results").set_index("method")["acc_percent"]
    rows = {**variants("kmeans", 2), **variants("idec", 2, "paper", study="table-2")}
    frame = study_records(rows, "breastmnist", ROOT / "results")
    frame, images = frame[frame["reading"] == "last"], load("breastmnist", download=False)
    stem = Path(frame[(frame["label"] == "IDEC + graph") & (frame["seed"] == 0)]["file"].iloc[0])
    Z = safetensors.numpy.load_file(stem.with_name("seed-0.embedding.safetensors"))["embedding"]
    labels = np.load(stem.with_name("seed-0.labels.npz"), allow_pickle=False)["labels"]
    with use_style():
        fig, axes = plt.subplots(1, 3, figsize=(17, 4.6), width_ratios=[1, 0.85, 1.75], layout="constrained")
        plot_images_by_cluster(images.images, labels, n_per_cluster=6, ax=axes[0])
        axes[0].set_title("what falls into one cluster")
        plot_embedding(tsne(Z), images.labels, images.class_names, ax=axes[1], title="the embedding, by true class")
        plot_scores(frame.assign(label=frame["label"].str.replace(", weight", "\nweight")), by="label", majority=frame["majority_share"].iloc[0], ax=axes[2])
        axes[2].plot(range(len(printed)), printed / 100, "x", color="black", markersize=9, markeredgewidth=2, label="printed in the paper")
        axes[2].set(title="accuracy beside the largest class", xlabel="")
        axes[2].legend(loc=(0.02, 0.74))
    return fig


if __name__ == "__main__":
    target = ROOT / "nbs" / "images" / "overview.png"
    target.parent.mkdir(exist_ok=True)
    draw().savefig(target, dpi=80, metadata={"Software": None})
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1024:.0f} KiB")
