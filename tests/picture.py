"""Draw nbs/images/overview.png, the picture of the README, from the records in results/: `make picture` runs this.

It needs the real BreastMNIST (`bc_clust data get breastmnist`), for the images in its left panel.
"""
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import safetensors.numpy
from matplotlib import pyplot as plt

from bc_clust.data import load
from bc_clust.experiments import paper_table, read_records
from bc_clust.plots import plot_embedding, plot_images_by_cluster, plot_scores, tsne, use_style

ROOT = Path(__file__).resolve().parents[1]
ROWS = ["k-means", "AE + k-means", "DEC", "IDEC", "IDEC + graph"]


def records():
    "Last-epoch scores of the five methods of the paper's Table 2, in its order."
    frame = read_records(ROOT / "results", data="breastmnist", labels=ROWS)
    frame = frame[frame["reading"] == "last"]
    return frame.sort_values("label", key=lambda v: v.map(ROWS.index), kind="stable")


def draw():
    "The figure: images by cluster, embedding by class, accuracies by seed."
    images, frame = load("breastmnist", download=False), records()
    stem = Path(frame[(frame["label"] == "IDEC + graph") & (frame["seed"] == 0)]["file"].iloc[0])
    Z = safetensors.numpy.load_file(stem.with_name("seed-0.embedding.safetensors"))["embedding"]
    labels = np.load(stem.with_name("seed-0.labels.npz"), allow_pickle=False)["labels"]
    with use_style():
        fig, axes = plt.subplots(1, 3, figsize=(17, 4.6), width_ratios=[1, 0.85, 1.75], layout="constrained")
        plot_images_by_cluster(images.images, labels, n_per_cluster=6, ax=axes[0])
        axes[0].set_title("what falls into one cluster")
        plot_embedding(tsne(Z), images.labels, images.class_names, ax=axes[1], title="the embedding, by true class")
        plot_scores(frame, by="label", majority=frame["majority_share"].iloc[0], ax=axes[2])
        printed = paper_table("idec-table2", ROOT / "results")["acc_percent"] / 100
        axes[2].plot(range(len(printed)), printed, "x", color="black", markersize=9, markeredgewidth=2, label="printed in the paper")
        axes[2].set(title="accuracy beside the largest class", xlabel="")
        axes[2].legend(loc="lower right")
    return fig


if __name__ == "__main__":
    target = ROOT / "nbs" / "images" / "overview.png"
    target.parent.mkdir(exist_ok=True)
    draw().savefig(target, dpi=80, metadata={"Software": None})
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1024:.0f} KiB")
