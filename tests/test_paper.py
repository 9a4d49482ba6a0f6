"""The numbers of the paper (arXiv 2004.02967v1) against what configs and pages claim of them."""

import re
from pathlib import Path

import pytest
import yaml

from biggan.config import load_config as load_gan
from evonorm_plugins.classification.config import from_dict, load_config
from evonorm_plugins.classification.optim import scaled_lr
from evonorm_plugins.classification.sweep import load_sweep
from evonorm_plugins.configs import list_configs
from evonorm_plugins.layers.candidates import CANDIDATES
from evonorm_plugins.search import rerank
from evonorm_plugins.search.config import load_config as load_search
from evonorm_plugins.search.config import training_config
from evonorm_plugins.training.config import to_dict

ROOT = Path(__file__).parents[1]

# Section 5.1: model, workers, images a worker, rate for 256 images, schedule, resolution. The rate
# of MobileNetV2 with layers of Table 3 that have no batch statistics is another.
RECIPES = {
    "resnet50": ("preact_resnet50", 8, 128, 0.1, "multistep", 224),
    "resnet101": ("preact_resnet101", 8, 128, 0.1, "multistep", 224),
    "mobilenetv2": ("torchvision:mobilenet_v2", 32, 128, 0.1, "cosine", 224),
    "mnasnet_b1": ("torchvision:mnasnet1_0", 32, 128, 0.1, "cosine", 224),
    "efficientnet_b0": ("torchvision:efficientnet_b0", 32, 128, 0.016, "polynomial", 224),
    "efficientnet_b5": ("torchvision:efficientnet_b5", 32, 64, 0.016, "polynomial", 456),
}
TABLE_3_LR = 0.03
UPDATES = {"resnet50": 1024, "mobilenetv2": 4096}  # images of one, Section 5.3
WIDTHS = {"0.9", "1.1"}  # of MobileNetV2 in Figure 11, beside 1.0
IMAGENET = [name for name in list_configs("classification") if name.startswith("imagenet_")]

# Table 4: backbone and layer -> AP, AP50, AP75 of boxes, the same of masks, millions of parameters.
TABLE_4 = {
    ("R-50", "BN"): (42.1, 62.9, 46.2, 37.8, 60.0, 40.6, 46.37),
    ("R-50", "EvoNormB0"): (44.0, 65.2, 48.1, 39.5, 62.7, 42.4, 46.38),
    ("R-50", "GN"): (42.7, 63.8, 46.6, 38.4, 61.2, 41.2, 46.37),
    ("R-50", "EvoNormS0"): (43.6, 64.9, 47.9, 39.4, 62.3, 42.7, 46.38),
    ("R-101", "BN"): (43.8, 64.2, 48.2, 39.2, 61.3, 42.5, 65.36),
    ("R-101", "EvoNormB0"): (45.1, 66.2, 49.0, 40.1, 63.3, 43.1, 65.38),
    ("R-101", "GN"): (44.0, 64.7, 48.3, 39.4, 62.1, 42.7, 65.36),
    ("R-101", "EvoNormS0"): (44.5, 65.3, 48.7, 39.6, 62.3, 42.6, 65.38),
}
# Table 2 and Table 3: the layers of their rows, and the images per worker of Table 3's columns.
TABLE_2 = ["BN-ReLU", "BN-PReLU", "BN-Swish-1", "BN-Swish", "Random", "Random + rej", "RS + rej"]
TABLE_2 += ["EvoNormB0", "EvoNormB1", "EvoNormB2"]
TABLE_3 = ["BN-ReLU", "GN-ReLU", "GN-Swish", "FRN", "EvoNormS0", "EvoNormS1", "EvoNormS2"]
IMAGES_PER_WORKER = (128, 64, 32, 16, 8, 4)

# Table 4: billions of multiply-adds, of BN-ReLU, EvoNorm-B0, GN-ReLU, EvoNorm-S0.
MULTIPLY_ADDS = {"R-50": (332.0, 332.3, 332.3, 331.9), "R-101": (409.8, 410.1, 410.3, 409.7)}


def recipe(name):
    """``imagenet_mobilenetv2_x0.9_BN-ReLU`` is a ``mobilenetv2``."""
    return next(
        k for k in sorted(RECIPES, key=len, reverse=True) if name.startswith(f"imagenet_{k}")
    )


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenets_configs_have_the_recipes_of_section_5_1(name):
    config, key = load_config(name), recipe(name)
    model, workers, images, lr, schedule, resolution = RECIPES[key]
    if key == "mobilenetv2" and config.norm in ("EvoNormS0", "GN-ReLU"):
        lr = TABLE_3_LR
    assert (config.model, config.batch_size, config.lr) == (model, images, lr)
    assert (config.schedule, config.resolution) == (schedule, resolution)
    assert config.warmup > 0  # linear
    assert scaled_lr(config, workers) == pytest.approx(lr * images * workers / 256)
    assert key not in UPDATES or config.batch_size * workers == UPDATES[key]
    assert name.endswith(f"_{config.norm}")


def test_every_model_of_table_2_and_figure_11_has_a_config():
    assert {recipe(name) for name in IMAGENET} == set(RECIPES)
    for width in WIDTHS:
        for norm in ("BN-ReLU", "EvoNormB0"):
            config = load_config(f"imagenet_mobilenetv2_x{width}_{norm}")
            assert config.model_options == {"width_mult": float(width)}
    sweep = yaml.safe_load((ROOT / "configs/evidence_widths_sweep.yaml").read_text())
    assert {str(w) for w in sweep["search"]["width"]} == WIDTHS | {"1.0"}


def test_tables_2_and_3_in_small_have_all_their_rows():
    data = ["data=x", "val_data=y"]
    norms = load_sweep("evidence_norms_sweep", data)
    assert norms.search["norm"] == TABLE_2
    models = {s["model"].removesuffix("_cifar") for s in norms.together["architecture"].values()}
    assert models == {"resnet50", "mobilenetv2", "efficientnet_b0"}  # the anchors of Section 4.2
    workers = load_sweep("evidence_images_per_worker_sweep", data)
    assert workers.search["norm"] == TABLE_3
    models = {s["model"].removesuffix("_cifar") for s in workers.together["architecture"].values()}
    assert models == {"resnet50", "mobilenetv2"}
    columns = workers.together["images_per_worker"]
    assert set(IMAGES_PER_WORKER) < set(columns)
    for images, setting in columns.items():
        assert setting == {"batch_size": images, "accumulations": 128 // images}
    for sweep in (norms, workers, load_sweep("evidence_widths_sweep", data)):
        assert sweep.search["seed"] == [0, 1]
        assert sweep.base["clip_grad"] == 4
        task = load_search("S", ["data=x", "candidates=1"])  # the proxy task, but for its length
        task = to_dict(training_config(task, "resnet50_cifar", "BN-ReLU"))
        for key in ("lr", "momentum", "nesterov", "weight_decay", "resolution", "clip_grad"):
            assert sweep.base[key] == task[key], key


def test_fewer_images_a_worker_lower_the_rate_linearly():
    """Figure 1: 8 workers, batches of 1024 to 32."""
    for images in (128, 64, 32, 16, 8, 4):
        config = load_config("imagenet_resnet50_EvoNormS0", [f"batch_size={images}"])
        assert scaled_lr(config, 8) == pytest.approx(0.4 * images / 128)


@pytest.mark.parametrize(("backbone", "layer"), TABLE_4)
def test_headers_and_page_have_the_results_of_table_4(backbone, layer):
    *ap, millions = TABLE_4[backbone, layer]
    file = f"mask_rcnn_{backbone.replace('-', '_')}_FPN_{layer}.yaml"
    for layout in ("paper", "stock"):
        text = (ROOT / "detectron_configs" / layout / file).read_text()
        line = next(line for line in text.splitlines() if line.startswith("# AP in the table"))
        numbers = [float(n) for n in re.findall(r"\d+\.\d", line)]
        assert numbers == ap
    header = (ROOT / "detectron_configs/paper" / file).read_text()
    ours = int(re.search(r"([\d,]+) here", header)[1].replace(",", ""))
    assert f"{millions} M parameters" in header
    assert ours / 1e6 == pytest.approx(millions, abs=0.005)
    name = f"{layer}-ReLU" if layer in ("BN", "GN") else layer
    row = f"| {backbone} | {name} | {' | '.join(map(str, ap))} |"
    assert row in (ROOT / "docs/detection.md").read_text()


@pytest.mark.parametrize(("backbone", "counts"), MULTIPLY_ADDS.items())
def test_multiply_adds_of_table_4(backbone, counts):
    """Half a billion is what counting element-wise operations in another way may make."""
    page = (ROOT / "docs/detection.md").read_text()
    assert f"| Table 4, {backbone} | {' | '.join(map(str, counts))} |" in page
    total = re.search(rf"\| total, {backbone} \| (.*) \|", page)[1]
    ours = [float(cell) for cell in total.split(" | ")]
    assert ours == pytest.approx(counts, abs=0.505)


def test_the_gans_of_table_5():
    norms = {load_gan(n).norm for n in list_configs("gan") if n.startswith("imagenet128_")}
    assert {f"GN-ReLU(groups={g})" for g in (8, 16, 32)} < norms  # the sweep of Section 5.5
    row = load_gan("imagenet128_GN-ReLU")
    assert (row.norm, row.resolution) == ("GN-ReLU(groups=16)", 128)
    assert row.extractor == "inception"  # best.pt is the peak
    assert row.score_every < row.steps


@pytest.mark.parametrize(("space", "steps", "schedule"), [
    ("B", 2000, "constant"), ("S", 5000, "cosine"),
])  # fmt: skip
def test_the_search_of_sections_4_and_5_1(space, steps, schedule):
    for name in (space, f"{space}_paper"):
        config = load_search(name, ["data=x", "candidates=1"])
        task = training_config(config, "resnet50_cifar", "BN-ReLU")
        assert (task.steps, task.schedule) == (steps, schedule)
        assert (task.resolution, task.batch_size, task.val_batch_size) == (24, 128, 512)
        assert (task.lr, task.momentum, task.nesterov) == (0.1, 0.9, True)
        assert (task.optimizer, task.weight_decay, task.warmup) == ("sgd", 1e-4, 0)
        assert (config.quality_steps, config.quality_accuracy) == (100, 0.2)
        assert (config.stability_steps, config.stability_norm) == (100, 1e8)
        assert (config.window, config.tournament, config.winner) == (2500, 0.05, "pareto")
        assert (config.mutations, config.random_share, config.groups) == (2, 0.5, 32)
    assert (task.flip, task.clip_grad) == (False, None)  # of *_paper: what the paper does not have
    assert sorted(config.filters) == ["quality", "stability"]


# The study's runs: norm, optimizer, rate, schedule, augmentation, images and updates of an epoch.
SGD = ("sgd", 1e-2, "inverse_time")
PLAIN, AUGMENTED = ("none", 128, None), ("affine", 32, 390)
STUDY = [
    ("BN-ReLU", "adam", 1e-3, "constant", *PLAIN),
    ("BN-ReLU", *SGD, *PLAIN),
    ("BN-ReLU", *SGD, *AUGMENTED),
    ("EvoNormB0", *SGD, *PLAIN),
    ("EvoNormB0", *SGD, *AUGMENTED),
    *((f"EvoNormS0(groups={groups})", *SGD, *PLAIN) for groups in (8, 16, 32)),
    ("EvoNormS0(groups=8)", *SGD, *AUGMENTED),
]


def test_the_runs_of_the_study():
    sweep = load_sweep("mini_inception_study_sweep")
    runs = [from_dict(sweep.trial_config(n, values)) for n, values in enumerate(sweep.choose())]
    keys = ("norm", "optimizer", "lr", "schedule", "augment", "batch_size", "steps_per_epoch")
    assert sorted(tuple(map(str, r)) for r in STUDY) == sorted(
        tuple(str(getattr(run, key)) for key in keys) for run in runs
    )
    for run in runs:
        assert (run.model, run.epochs, run.weight_decay) == ("mini_inception", 60, 0)
        assert run.model_options == {"dropout": 0.5}
        assert (run.momentum, run.nesterov, run.decay) == (0.9, False, 1e-2)
        assert (run.rotation, run.zoom, run.shift, run.flip) == (18, 0.15, 0.2, True)


def test_the_search_of_the_study():
    sweep = load_sweep("mini_inception_sweep")
    assert sweep.search["groups"] == [4, 8, 12, 16, 32]
    assert sweep.search["epochs"] == [10, 20, 30, 40, 50, 60]
    assert sweep.search["lr"] == [1e-2, 1e-3, 1e-4, 3e-4, 3e-5, 1e-5]
    assert sweep.search["method"] == ["adam", "sgd"]
    first = {"groups": 12, "epochs": 10, "lr": 1e-2}
    adam, sgd = (from_dict(sweep.trial_config(0, {**first, "method": m})) for m in ("adam", "sgd"))
    assert adam.norm == sgd.norm == "EvoNormS0(groups=12)"
    assert (adam.optimizer, adam.schedule, adam.clip_grad) == ("adam", "constant", 1)
    assert (sgd.optimizer, sgd.schedule, sgd.decay) == ("sgd", "inverse_time", 1e-2)
    assert (sgd.momentum, sgd.nesterov, sgd.clip_grad) == (0.9, False, None)


def test_the_page_names_configs_and_files_that_exist():
    page = (ROOT / "docs/paper.md").read_text()
    kinds = ("classification", "sweep", "gan", "search")
    known = {name for kind in kinds for name in list_configs(kind)}
    names = re.findall(r"`((?:imagenet|cifar10|mini_inception)\w*(?:[.-]\w+)*_?\*?)", page)
    assert len(names) > 10
    for name in names:
        start = name.removesuffix("*")
        assert name in known or (name.endswith("*") and any(k.startswith(start) for k in known)), (
            name
        )
    for file in re.findall(r"`([\w/.*]+\.(?:py|yaml|md))`", page):
        places = [ROOT, ROOT / "evonorm_plugins", ROOT / "evonorm_plugins/layers/graph"]
        places += [ROOT / "evonorm_plugins/search", ROOT / "configs/search"]
        assert any(list(place.glob(file)) for place in places), file


def test_the_sweep_of_appendix_b():
    """Each candidate once, beside BN-ReLU and GN-ReLU, on the anchors of the search."""
    sweep = yaml.safe_load((ROOT / "configs/candidates_sweep.yaml").read_text())["search"]
    assert sorted(sweep["norm"]) == sorted({*CANDIDATES.values(), "BN-ReLU", "GN-ReLU"})
    assert sweep["model"] == load_search("B", ["data=x", "candidates=1"]).anchors
    assert len(sweep["seed"]) == 2


def test_reranking_of_section_5_2():
    """The ten best on three models, a tenth of the training set held out, three kept."""
    assert (rerank.COUNT, rerank.KEEP) == (10, 3)
    page = (ROOT / "docs/search.md").read_text()
    page = page[page.index("### Reranking") :]
    command = re.search(r"evonorm search rerank .*?(?=\n    evonorm|\n\n)", page, re.DOTALL)[0]
    models = [load_config(name).model for name in re.findall(r"--config (\S+)", command)]
    assert models == load_search("B", ["data=x", "candidates=1"]).anchors
    assert "holdout=10%" in command
