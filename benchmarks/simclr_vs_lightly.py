"""Views a second of bc_clust's SimCLR beside lightly's: same network, images, views, batches, epochs and threads, in one process.

    python benchmarks/simclr_vs_lightly.py --repeats 3 --epochs 3 --threads 2 --out results/benchmarks/simclr_vs_lightly_cpu_2_threads.json

README.md in this folder says how to read the result.
"""
import argparse
import gc
import time

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from bc_clust.augment import two_views
from bc_clust.backbones import ResNet, count_macs, count_parameters
from bc_clust.data import load_or_phantom
from bc_clust.simclr import LARS, SimCLR, nt_xent
from bc_clust.training import FLOAT32, cpu_has_bfloat16, resolve_device, resolve_precision, seeded

from measure import StepClock, convolution_rate, load_average, matrix_rate, record, synchronize, whole_number, write
from tables import table

SIZE, SIDE, BATCH, WIDTH = 224, 32, 128, 128   # pixels of the images and of the views, images a batch, numbers in z
BESIDE = {"bc_clust float32": "lightly float32", "bc_clust bfloat16": "lightly float32", "bc_clust bfloat16, like for like": "lightly bfloat16"}
NOTES = [
    "lightly as in its own example: SimCLRTransform on PIL images in RGB behind a DataLoader, one forward pass for each view, "
    "SimCLRProjectionHead without BatchNorm, NTXentLoss, lightly's LARS.",
    "Both: torchvision's residual blocks behind a 3 x 3 convolution of stride 1 without pooling, crops to 32 pixels, both mirrors with "
    "probability 0.5, brightness and contrast by factors of 0.6 to 1.4, blur with probability 0.5; a smaller last batch is left out.",
    "The images lie in memory at 224 pixels; no file is read. bc_clust's are grey, lightly's the same grey three times, so its first "
    "convolution has 1,152 weights more.",
    "bc_clust changes whole batches as tensors and passes both views at once, in channels-last memory. lightly's bfloat16 is "
    "torch's autocast, and no more.",
    "The views have the same kinds of changes but not the same law: lightly crops to 50 to 100 % of the area and changes brightness and "
    "contrast together in 80 % of the views; bc_clust crops to 50 to 80 % and changes brightness in 80 %, contrast in 20 %.",
    "With --workers 0 lightly prepares its images while the network waits.",
]


class RGB(Dataset):
    "Grey arrays that become PIL images in RGB, as lightly's own data set opens files."

    def __init__(self, X, transform):
        self.X, self.transform = X, transform

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.X[i]).convert("RGB"))


class Lightly:
    "SimCLR from lightly's parts, written as in its example."

    def __init__(self, backbone, precision, device, workers, lr):
        from lightly.loss import NTXentLoss  # imported late: a test extra
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform
        from lightly.utils.lars import LARS

        self.device, self.workers = torch.device(device), workers
        self.bfloat16 = resolve_precision(precision, self.device) != FLOAT32
        body = ResNet(backbone, in_channels=3)
        head = SimCLRProjectionHead(body.n_features, body.n_features, WIDTH, batch_norm=False)
        self.network = nn.Sequential(body, head).to(self.device)
        self.loss, self.optimiser = NTXentLoss(temperature=0.5), LARS(self.network.parameters(), lr=lr, momentum=0.9, weight_decay=1e-6)
        self.transform = SimCLRTransform(input_size=SIDE, cj_prob=0.8, cj_strength=1.0, cj_bright=0.4, cj_contrast=0.4, cj_sat=0, cj_hue=0,
                                         min_scale=0.5, random_gray_scale=0, gaussian_blur=0.5, vf_prob=0.5, hf_prob=0.5)

    def loader(self, X):
        return DataLoader(RGB(X, self.transform), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=self.workers)

    def forward(self, views):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            za, zb = (self.network(v.to(self.device)) for v in views)
        return self.loss(za.float(), zb.float())

    def fit(self, X, epochs):
        self.network.train()
        for _ in range(epochs):
            total = 0
            for views in self.loader(X):
                loss = self.forward(views)
                self.optimiser.zero_grad()
                loss.backward()
                self.optimiser.step()
                total = total + loss.detach()
        return total.item() / (len(X) // BATCH)


def ours(backbone, precision, device, epochs, seed=0):
    return SimCLR(backbone, n_epochs=epochs, warmup_epochs=0, batch_size=BATCH, image_size=SIDE, precision=precision, device=device, random_state=seed)


def kind(side):
    "Whose, and in which precision."
    who, precision = side.split(",")[0].split()
    return who, precision


def train(side, X, backbone, epochs, device, workers, seed=0):
    "Fit a side from nothing; the mean loss of its last epoch."
    who, precision = kind(side)
    if who == "bc_clust":
        return float(ours(backbone, precision, device, epochs, seed).fit(X).history_["loss"].iloc[-1])
    with seeded(seed):
        return Lightly(backbone, precision, device, workers, lr=0.075 * BATCH**0.5).fit(X, epochs)


def timed(side, X, backbone, epochs, device, workers, seed):
    "What a later epoch costs, and that the work was the work."
    gc.collect()
    synchronize(device)
    with StepClock(len(X) // BATCH, epochs, device) as clock:
        loss = train(side, X, backbone, epochs, device, workers, seed)
    phase, = clock.phases(expected=1)  # refuses another number of steps
    return {**phase, "loss": round(loss, 4), "views_per_second": round(2 * BATCH * (len(X) // BATCH) / phase["seconds_per_epoch"], 3)}


def seconds_of(work, repeats, device):
    "Median seconds of a piece of work, after one that is not counted."
    found = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return round(sorted(found[1:])[repeats // 2], 6)


def parts(side, X, backbone, device, workers, repeats=3):
    "Seconds a batch of the parts of a step: views (with the loader), forward with the loss, backward, optimiser."
    who, precision = kind(side)
    if who == "lightly":
        other = Lightly(backbone, precision, device, workers, lr=0.1)
        other.network.train()
        batch, optimiser = next(iter(other.loader(X[:BATCH]))), other.optimiser

        def views():
            next(iter(other.loader(X[:BATCH])))

        def forward():
            return other.forward(batch)
    else:
        model = ours(backbone, precision, device, 1).fit(X[:BATCH])  # an epoch of one batch, so that all is in its place
        model.backbone_.train(), model.projector_.train()
        optimiser = LARS([*model.backbone_.parameters(), *model.projector_.parameters()], 0.1, weight_decay=1e-6)
        planes = model._planes(torch.from_numpy(X[:BATCH]).to(model._device))
        batch = torch.cat(two_views(planes, SIDE, **model._view()))

        def views():
            two_views(planes, SIDE, **model._view())

        def forward():
            with model._autocast():
                za, zb = model.projector_(model._features(batch)).chunk(2)
            return nt_xent(za, zb)

    found = {"views": seconds_of(views, repeats, device), "forward": seconds_of(forward, repeats, device)}

    def both_ways():
        optimiser.zero_grad()
        forward().backward()

    both = seconds_of(both_ways, repeats, device)
    return {**found, "backward": round(max(0.0, both - found["forward"]), 6), "optimiser": seconds_of(optimiser.step, repeats, device)}


def fastest_rate(dtype, device):
    "GFLOP/s of large products of matrices, as such or as a convolution, whichever is faster here."
    return round(max(measure(dtype, device=device) for measure in (matrix_rate, convolution_rate)), 1)


def compare(X, backbone, o):
    "Runs of a network: in each repeat every side once, another one first each time."
    sides = [s for s in dict.fromkeys([*BESIDE.values(), *BESIDE]) if "like for like" not in s]   # that one is timed once
    if not (o.device == "cuda" or cpu_has_bfloat16()):
        sides = [s for s in sides if kind(s)[1] == "float32"]
    beside = {a: b for a, b in BESIDE.items() if {" ".join(kind(a)), b} <= set(sides)}
    print(f"{backbone}: a short run of each side to warm up", flush=True)
    for side in sides:
        train(side, X[:2 * BATCH], backbone, 1, o.device, o.workers)
    runs = []
    for repeat in range(o.repeats):
        order = sides[repeat % len(sides):] + sides[:repeat % len(sides)]
        rates = {name: fastest_rate(getattr(torch, name), o.device) for name in sorted({kind(side)[1] for side in sides})}   # a machine is not always as fast
        found = {side: timed(side, X, backbone, o.epochs, o.device, o.workers, repeat) for side in order}
        extra = {found[b]["parameters"] - found[" ".join(kind(a))]["parameters"] for a, b in beside.items()}
        if extra != {2 * 64 * 9}:
            raise RuntimeError(f"the sides train other networks (lightly has {extra} parameters more, expected 1152): not the same work")
        ratio = {a: found[b]["seconds_per_epoch"] / found[" ".join(kind(a))]["seconds_per_epoch"] for a, b in beside.items()}
        runs.append({"repeat": repeat, "order": order, "gflops": rates, "sides": found, "ratio": ratio})
        print(f"  repeat {repeat + 1} of {o.repeats}: " + "; ".join(f"{a} {v:.2f}" for a, v in ratio.items()), flush=True)
    return {"backbone": backbone, "beside": beside, "runs": runs, "macs": count_macs(ResNet(backbone), (1, 1, SIDE, SIDE)),
            "parameters": count_parameters(ResNet(backbone)),
            "parts": {side: parts(side, X, backbone, o.device, o.workers) for side in sides}}


def read_options(arguments):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--backbones", nargs="+", choices=("resnet18", "resnet34", "resnet50"), default=["resnet18", "resnet50"])
    options.add_argument("--n", type=whole_number(2 * BATCH), default=2 * BATCH, help="images (default: 256)")
    options.add_argument("--epochs", type=whole_number(2), default=3, help="epochs of a run; the first is not counted (default: 3)")
    options.add_argument("--repeats", type=whole_number(1), default=3, help="how often each side is measured (default: 3)")
    options.add_argument("--threads", type=whole_number(1), default=1, help="torch threads of both sides (default: 1)")
    options.add_argument("--workers", type=whole_number(0), default=0, help="processes of lightly's DataLoader (default: 0)")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both sides train (default: cpu)")
    options.add_argument("--out", help="the JSON file (default: results/benchmarks/simclr_vs_lightly_<device>.json)")
    o = options.parse_args(arguments)
    try:
        resolve_device(o.device)
    except ValueError as error:
        options.error(str(error))
    return o


def main(arguments=None):
    o, load = read_options(arguments), load_average()
    try:
        import lightly  # noqa: F401
    except ImportError:
        raise SystemExit('lightly is not installed; pip install -e ".[oracles]"')
    images = load_or_phantom("busi", size=SIZE)
    X = images.images[:o.n]
    if len(X) < o.n:
        raise SystemExit(f"--n {o.n}: the set has {len(X)} images")
    torch.set_num_threads(o.threads)
    rows = [compare(X, backbone, o) for backbone in o.backbones]
    fitted = ours("resnet18", "float32", o.device, 0).fit(X[:2])  # the record asks a fitted estimator for its device
    result = record(f"simclr_vs_lightly_{o.device}", fitted, o.threads, ("lightly", "torchvision", "pillow"), notes=NOTES, load_before=load,
                    options={"n": o.n, "epochs": o.epochs, "repeats": o.repeats, "batch_size": BATCH, "workers": o.workers, "device": o.device},
                    data={"name": images.name, "source": images.source, "sha256": images.sha256, "shape": list(X.shape)},
                    rows=rows)
    path = write(result, o.out)
    print(table(path).to_string(index=False))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
