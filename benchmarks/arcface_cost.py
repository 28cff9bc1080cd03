"""What ArcFace of bc_clust costs, in images a second and in memory, beside the plain way to train the same network.

    python benchmarks/arcface_cost.py --repeats 3 --head-epochs 20 --finetune-epochs 3 --threads 1

README.md in this folder says how to read the result.
"""
import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.models import mobilenet_v3_small

from bc_clust.arcface import ArcFace, ClassVectors, ProjectionHead, arcface_loss, class_cosines
from bc_clust.backbones import IMAGENET_MEAN, IMAGENET_STD, MobileNetV3Small, count_macs
from bc_clust.data import load_or_phantom
from bc_clust.experiments import environment
from bc_clust.training import FLOAT32, cpu_has_bfloat16, resolve_device, resolve_precision, seeded

from measure import PeakMemory, StepClock, load_average, matrix_rate, record, synchronize, whole_number, write
from tables import table

SIZE, BATCH = 224, ArcFace().batch_size
MAP_BATCH = 32  # images at a time when ArcFace computes features
PLAIN = "plain float32"
BESIDE = {  # each part: a side of ours and the plain side that it is compared with
    "features": {"bc_clust float32": PLAIN, "bc_clust bfloat16": "plain bfloat16"},
    **{part: {"bc_clust float32": PLAIN, "bc_clust bfloat16": PLAIN} for part in ("phase1", "phase2", "memory")}}
QUANTITIES = {"features": ("seconds",), "phase1": ("whole", "seconds_per_epoch"), "phase2": ("whole", "seconds_per_epoch"),
              "memory": ("extra_bytes", "gpu_bytes")}
NOTES = [
    "The plain way: torchvision's MobileNetV3-Small behind a DataLoader without workers; PIL images go one by one through "
    "torchvision.transforms. The images lie in memory at the size of the network: no file is read, and Resize has nothing to do.",
    f"Both: the same first weights, head, ArcFace loss with class weights, AdamW, learning rates, batches of {BATCH} shuffled "
    "anew each epoch with the smaller last one kept, and loss and accuracy added up without waiting for them. The weights are "
    "random, so that nothing has to be downloaded; that changes what is learned, not what is computed.",
    f"Features: the plain way computes them in the batches it trains with ({BATCH} images), bc_clust in batches of {MAP_BATCH}.",
    "Phase 1: the plain way runs the backbone in every epoch, bc_clust once (cache_features=True). So its ratio grows with the "
    "number of epochs.",
    "Phase 2: bc_clust changes whole batches as tensors, the plain way image by image in PIL, still grey; both then repeat the "
    "grey three times. Mirror images, turns, shifts and sizes have the same ranges. ColorJitter multiplies by 0.9 to 1.1 where "
    "bc_clust adds -0.1 to 0.1, and its contrast turns about the mean of the image, that of bc_clust about black.",
    "Without workers the plain way prepares its images while the network waits; on a machine with idle cores, workers would "
    "hide a part of that.",
    "bc_clust keeps the backbone in channels-last memory, the plain way in torch's default; in bfloat16 (features only) the plain "
    "way runs under autocast, and no more.",
]


class GreyImages(Dataset):
    "Arrays that become PIL images one by one and go through transforms."

    def __init__(self, X, y, transform):
        self.X, self.y, self.transform = X, y, transform

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.X[i])), int(self.y[i])


class PlainWay:
    """ArcFace's two phases as one would write them from torchvision's parts.

    Parameters
    ----------
    settings : ArcFace, not fitted: its settings are taken
    n_classes : int
    """

    def __init__(self, settings, n_classes):
        s = self.settings = settings
        self.device = resolve_device(s.device)
        with seeded(s.random_state):  # ArcFace draws the same numbers in this order, so both sides start from the same weights
            self.backbone = mobilenet_v3_small()
            self.head = ProjectionHead(MobileNetV3Small.n_features, s.hidden_dim, s.embedding_dim, s.dropout)
            self.vectors = ClassVectors(n_classes, s.embedding_dim)
        self.backbone.classifier = nn.Identity()
        for part in (self.backbone, self.head, self.vectors):
            part.to(self.device)

    def loader(self, X, y, shuffle, augment=False):
        size = self.settings.image_size
        chance = [T.RandomHorizontalFlip(),
                  T.RandomAffine(10, (0.05, 0.05), (0.9, 1.1), interpolation=T.InterpolationMode.BILINEAR),
                  T.ColorJitter(brightness=0.1, contrast=0.2)] if augment else []
        transform = T.Compose([T.Resize((size, size)), *chance, T.Grayscale(3), T.ToTensor(),
                               T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
        return DataLoader(GreyImages(X, y, transform), batch_size=self.settings.batch_size, shuffle=shuffle, num_workers=0)

    def features(self, X):
        "Features of the backbone, array (n, 576), in the precision of the settings."
        self.backbone.eval()
        precision = resolve_precision(self.settings.precision, self.device)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=precision != FLOAT32):
            parts = [self.backbone(x.to(self.device)).float().cpu()
                     for x, _ in self.loader(X, np.zeros(len(X)), shuffle=False)]
        return torch.cat(parts).numpy()

    def fit(self, X, y):
        "Both phases. Afterwards `loss` holds the mean loss of the last epoch."
        s = self.settings
        counts = np.bincount(y)
        self.weight = torch.tensor(len(y) / (len(counts) * counts), dtype=torch.float32, device=self.device)
        with seeded(s.random_state):
            self._phase(self.loader(X, y, shuffle=True), s.head_epochs, s.head_lr, 0)
            self._phase(self.loader(X, y, shuffle=True, augment=s.augment), s.finetune_epochs, s.finetune_lr,
                        s.unfrozen_blocks)
        return self

    def _phase(self, loader, epochs, lr, unfrozen):
        blocks = self.backbone.features
        frozen = blocks[:len(blocks) - unfrozen]
        blocks.requires_grad_(True)
        frozen.requires_grad_(False)
        trained = [p for part in (self.backbone, self.head, self.vectors) for p in part.parameters() if p.requires_grad]
        adam = torch.optim.AdamW(trained, lr=lr, weight_decay=self.settings.weight_decay)
        for _ in range(epochs):
            self.backbone.train(self.settings.train_batchnorm)
            frozen.eval()  # BatchNorm of the frozen blocks stays as it is in any case
            self.head.train()
            self.loss, self.accuracy = self._epoch(loader, adam)

    def _epoch(self, loader, adam):
        s, loss_sum, right, n = self.settings, 0, 0, len(loader.dataset)
        for x, y in loader:
            x, y = x.to(self.device), y.to(self.device)
            z = self.head(self.backbone(x))
            loss = arcface_loss(z, self.vectors.W, y, s.margin, s.scale, self.weight)
            adam.zero_grad()
            loss.backward()
            adam.step()
            loss_sum = loss_sum + loss.detach() * len(y)
            right = right + (class_cosines(z.detach(), self.vectors.W).argmax(1) == y).sum()
        return loss_sum.item() / n, right.item() / n


def settings(side, X, device, seed=0, head_epochs=0, finetune_epochs=0):
    "The estimator of a side such as \"bc_clust float32\"; the plain way takes its settings from it."
    return ArcFace(weights=None, image_size=X.shape[1], device=device, random_state=seed, precision=side.split()[1],
                   head_epochs=head_epochs, finetune_epochs=finetune_epochs, output="features")


def is_ours(side):
    return side.startswith("bc_clust")


def extractor(side, X, y, device, seed=0):
    "A function from images to features, with networks that are not trained."
    model = settings(side, X, device, seed)
    return model.fit(X, y).transform if is_ours(side) else PlainWay(model, len(np.unique(y))).features


def train(side, model, X, y):
    "Fit a side from nothing; the loss of its last epoch."
    if is_ours(side):
        return float(model.fit(X, y).history_["loss"].iloc[-1])
    return PlainWay(model, len(np.unique(y))).fit(X, y).loss


def timed_features(side, X, y, device, seed):
    extract = extractor(side, X, y, device, seed)
    gc.collect()
    synchronize(device)
    start = time.perf_counter()
    extract(X)  # ends with an array on the CPU, so there is nothing left to wait for
    return {"seconds": round(time.perf_counter() - start, 6)}


def timed_phase(side, X, y, device, seed, **epochs):
    model = settings(side, X, device, seed, **epochs)
    gc.collect()
    synchronize(device)
    clock = StepClock(-(-len(X) // BATCH), sum(epochs.values()), device)
    with clock:
        loss = train(side, model, X, y)
    phase, = clock.phases(expected=1)  # refuses another number of steps than images, batches and epochs ask for
    return {"whole": clock.seconds, **phase, "loss": round(loss, 4)}


def spread(X, y, n):
    "n images at equal distances: the set may stand in the order of its classes."
    index = np.linspace(0, len(X) - 1, n).round().astype(int)
    return X[index], y[index]


def warm_part(X, y):
    "Few images that fall into batches of the same sizes as all of them, the last one included."
    return spread(X, y, min(len(X), MAP_BATCH + len(X) % MAP_BATCH))


def memory(side, X, y, device):
    "The most memory that a fit of an epoch of each phase adds to this process, after a small one has woken the libraries."
    epochs = dict(head_epochs=1, finetune_epochs=1)
    train(side, settings(side, X, device, **epochs), *warm_part(X, y))
    gpu = torch.device(device).type == "cuda"
    if gpu:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with PeakMemory() as peak:
        loss = train(side, settings(side, X, device, **epochs), X, y)
    return {"extra_bytes": peak.extra, "extra_how": peak.how, "data_bytes": X.nbytes, "loss": round(loss, 4),
            "gpu_bytes": torch.cuda.max_memory_allocated(device) - before if gpu else None}


def child(file, side, device, threads):
    "Measure the memory of a side in this process and print it as JSON."
    torch.set_num_threads(threads)
    with np.load(file, allow_pickle=False) as data:
        X, y = data["X"], data["y"]
    print(json.dumps(memory(side, X, y, device)))


def in_fresh_process(file, side, device, threads):
    "Memory of a side, measured by a child process that has done nothing else."
    command = [sys.executable, __file__, "--child", str(file), "--side", side, "--device", device, "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the measurement of the memory of {side} ended with status {done.returncode} (negative: killed, often "
                         "for want of memory); nothing was written. Take fewer images with --n.")
    return json.loads(done.stdout.splitlines()[-1])


def compare(part, measure, repeats, say=print):
    """The runs of a part: in each repeat every side once, another one first each time.

    `measure(side, repeat)` gives a dict of numbers. A ratio is the plain side's number divided by ours; None where one of
    them is missing or not above 0.
    """
    sides = list(dict.fromkeys([*BESIDE[part].values(), *BESIDE[part]]))
    runs = []
    for repeat in range(repeats):
        order = sides[repeat % len(sides):] + sides[:repeat % len(sides)]
        found = {side: measure(side, repeat) for side in order}
        if len({f.get("parameters") for f in found.values()}) > 1:
            raise RuntimeError(f"the sides train other numbers of parameters in {part}: this is not the same work")
        ratio = {ours: {q: found[plain][q] / found[ours][q] if min(found[s][q] or 0 for s in (ours, plain)) > 0 else None
                        for q in QUANTITIES[part]} for ours, plain in BESIDE[part].items()}
        runs.append({"repeat": repeat, "order": order, "sides": found, "ratio": ratio})
        say(f"  {part}, repeat {repeat + 1} of {repeats}: " + "; ".join(
            f"{ours} " + ", ".join(f"{q} {v:.2f}" for q, v in r.items() if v) for ours, r in ratio.items()), flush=True)
    return {"part": part, "beside": BESIDE[part], "runs": runs}


def measure_all(X, y, o, device):
    "The four parts of the record."
    epochs = {"phase1": dict(head_epochs=o.head_epochs), "phase2": dict(finetune_epochs=o.finetune_epochs)}
    measures = {"features": lambda side, seed: timed_features(side, X, y, device, seed),
                **{part: lambda side, seed, e=e: timed_phase(side, X, y, device, seed, **e) for part, e in epochs.items()}}
    print("one short run of each side to warm up", flush=True)
    few = warm_part(X, y)
    for part in measures:
        for side in {*BESIDE[part], *BESIDE[part].values()}:
            timed_features(side, *few, device, 0) if part == "features" else timed_phase(
                side, *few, device, 0, **dict.fromkeys(epochs[part], 2))
    rows = [compare(part, measure, o.repeats) for part, measure in measures.items()]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        np.savez(file, X=X, y=y)
        rows.append(compare("memory", lambda side, seed: in_fresh_process(file, side, device, o.threads), o.repeats))
    return rows


def difference(X, y, device):
    "Largest difference of the two sides' float32 features, as a share of the largest feature."
    plain, ours = (extractor(side, X, y, device)(X) for side in (PLAIN, "bc_clust float32"))
    share = float(np.abs(ours - plain).max() / np.abs(plain).max())
    if not share < 1e-2:  # a GPU may compute convolutions in TF32, about three digits
        raise RuntimeError(f"the features of the two sides differ by {share:.2g} of the largest one: this is not the same work")
    return share


def operations(model):
    "Multiply-accumulate operations of one image, forward."
    s, d = model.image_size, model.backbone_.n_features
    vectors = nn.Linear(model.embedding_dim, len(model.classes_), bias=False).to(model.vectors_.W.device)
    whole = nn.Sequential(model.backbone_, model.head_, vectors)
    return {"backbone": count_macs(model.backbone_, (1, 3, s, s)), "head": count_macs(model.head_, (1, d)),
            "whole": count_macs(whole, (1, 3, s, s))}


def read_options(arguments):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--threads", type=whole_number(1), default=1, help="torch threads of both sides (default: 1)")
    options.add_argument("--repeats", type=whole_number(1), default=3, help="how often each side is measured (default: 3)")
    options.add_argument("--head-epochs", type=whole_number(2), default=50,
                         help="epochs of phase 1; the ratio of the whole phase grows with them (default: 50, as ArcFace has)")
    options.add_argument("--finetune-epochs", type=whole_number(2), default=3, help="epochs of phase 2 (default: 3)")
    options.add_argument("--n", type=whole_number(20), help="take fewer images, spread over the set (default: all)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both sides train (default: cpu)")
    options.add_argument("--out", help="the JSON file (default: results/benchmarks/arcface_cost_<device>.json)")
    options.add_argument("--child", help=argparse.SUPPRESS)
    options.add_argument("--side", help=argparse.SUPPRESS)
    o = options.parse_args(arguments)
    try:
        resolve_device(o.device)
    except ValueError as error:
        options.error(str(error))
    if o.n is not None and o.n % BATCH == 1:
        options.error(f"--n {o.n}: the last batch of {BATCH} would hold one image, which the sides treat differently; "
                      "take one image more or less")
    return o, options


def main(arguments=None):
    o, options = read_options(arguments)
    if o.child:
        return child(o.child, o.side, o.device, o.threads)
    load = load_average()
    images = load_or_phantom("busi", size=SIZE)
    if o.n is not None and o.n > len(images):
        options.error(f"--n {o.n}: the set has {len(images)} images")
    X, y = spread(images.images, images.labels, o.n or len(images))
    torch.set_num_threads(o.threads)
    agreement = difference(*warm_part(X, y), o.device)
    rows = measure_all(X, y, o, o.device)
    fitted = settings("bc_clust float32", X, o.device).fit(X, y)  # the record asks a fitted estimator for its device
    side = 2048 if o.device == "cpu" else 8192  # a GPU needs larger products to get to its rate
    result = record(
        f"arcface_cost_{o.device}", fitted, o.threads, also=("torchvision", "pillow"), load_before=load,
        host={"processor": environment(ArcFace(), o.threads)["processor"], "bfloat16_instructions": cpu_has_bfloat16()},
        options={"repeats": o.repeats, "head_epochs": o.head_epochs, "finetune_epochs": o.finetune_epochs, "n": len(X),
                 "batch_size": BATCH, "feature_batch_size": MAP_BATCH, "device": o.device},
        data={"name": images.name, "source": images.source, "sha256": images.sha256, "shape": list(X.shape)},
        macs=operations(fitted), gflops={name: matrix_rate(getattr(torch, name), side, device=o.device)
                                         for name in ("float32", "bfloat16")},
        features_difference=agreement, rows=rows, notes=NOTES)
    path = write(result, o.out)
    print(f"\n{table(path).to_string(index=False)}\n\n" + "\n".join(f"- {note}" for note in NOTES) + f"\n\nWritten to {path}")


if __name__ == "__main__":
    sys.exit(main())
