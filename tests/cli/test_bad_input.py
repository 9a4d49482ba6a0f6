"""Command lines with a mistake: exit status 2, one line that names it, nothing left or changed.

A line of a table is what is typed after ``evonorm`` and, behind ``::``, a part of what is said.
"""

import json
import os
import shlex
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from evonorm_plugins import cli
from evonorm_plugins.layers.graph.known import KNOWN
from tests.biggan.conftest import TINY
from tests.biggan.pictures import picture
from tests.metrics.conftest import pictures, save_pngs

CLASSIFIER = {
    "data": "set.zip", "val_data": "set.zip", "model": "resnet8_cifar", "width": 0.1,
    "batch_size": 4, "epochs": 1, "workers": 0, "device": "cpu", "output_dir": "new",
}  # fmt: skip
SEARCH = {
    "data": "set.zip", "holdout": 6, "anchors": ["resnet8_cifar"], "width": 0.1, "batch_size": 4,
    "steps": 2, "quality_steps": 1, "stability_batch": 2, "candidates": 2, "store": "new.sqlite",
    "device": "cpu",
}  # fmt: skip
COCO = {
    "images": [{"id": 1, "file_name": "0000.png", "height": 16, "width": 16}],
    "categories": [{"id": 1, "name": "thing"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 9], "area": 72, "iscrowd": 0,
         "segmentation": [[1, 2, 9, 2, 9, 11, 1, 11]]}
    ],
}  # fmt: skip
FOUND = [{"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [1, 2, 8, 9]}]


class Evil:
    """Pickled, it makes a folder where it is read."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.fixture(scope="module")
def world(tmp_path_factory, request):
    """A folder with whatever the tables name."""
    folder = tmp_path_factory.mktemp("world")
    _write_data(folder)
    _write_configs(folder)
    (folder / "gt.json").write_text(json.dumps(COCO))
    (folder / "dt.json").write_text(json.dumps(FOUND))
    for name, change in {
        "image.json": {"image_id": 7}, "category.json": {"category_id": 3},
        "score.json": {"score": "high"}, "nan.json": {"score": float("nan")},
        "box.json": {"bbox": [1, 2, 3]}, "negative.json": {"bbox": [1, 2, -3, 4]},
    }.items():  # fmt: skip
        (folder / name).write_text(json.dumps([{**FOUND[0], **change}]))
    (folder / "object.json").write_text("{}")
    (folder / "cut.json").write_text('{"images": [')
    (folder / "deep.json").write_text("[" * 10_000 + "]" * 10_000)
    (folder / "latin.json").write_bytes(b'{"a": "\xe9"}')
    KNOWN["EvoNormS0"].save(folder / "layer.json")
    torch.save(Evil(), folder / "evil.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"format": "evonorm-plugins GAN"}, folder / "bare.pt")
    np.savez(folder / "mu.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    (folder / "mine.json").write_text("[1]")
    return folder


def _write_data(folder):
    save_pngs(pictures(6, 16), folder / "images")
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for k, label in enumerate("ab"):
            for i in range(10):
                archive.writestr(f"{label}/{i}.png", picture(k, i, size=32))
    with zipfile.ZipFile(folder / "flat.zip", "w") as archive:
        archive.writestr("0.png", picture(0, 0, size=16))
    whole = (folder / "set.zip").read_bytes()
    (folder / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (folder / "empty").write_text("")
    (folder / "text").write_text("no image\n")
    (folder / "nothing").mkdir()
    np.save(folder / "float.npy", np.zeros((4, 8, 8, 3), np.float32))
    np.save(folder / "flat.npy", np.zeros((4, 8), np.uint8))
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)


def _write_configs(folder):
    def write(name, values):
        (folder / f"{name}.yaml").write_text(json.dumps(values))

    write("classify", CLASSIFIER)
    write("gan", {**TINY, "norm": "EvoNormS0", "data": "set.zip", "output_dir": "new"})
    write("search", SEARCH)
    write("sweep", {"base": "classify.yaml", "search": {"lr": [0.1, 0.2]}, "output_dir": "new"})
    write("list", [1, 2])
    write("number", 3)
    write("unknown", {"frobnicate": 1})
    write("base_number", {"_BASE_": 3})
    write("base_none", {"_BASE_": "none.yaml"})
    write("base_self", {"_BASE_": "base_self.yaml"})
    write("base_list", {"_BASE_": ["classify.yaml"]})
    (folder / "latin.yaml").write_bytes(b"norm: \xe9\n")
    (folder / "tabs.yaml").write_text("a:\n\t- b: [\n")
    (folder / "object.yaml").write_text("data: !!python/object/apply:os.mkdir [pwned]\n")
    (folder / "nested.yaml").write_text("a: " + "[" * 5000)


# What is wrong with a file, whichever command reads it as its config.
FILES = """
none.yaml :: none.yaml
nothing :: nothing
empty :: empty is empty
list.yaml :: list.yaml holds no keys, but [1, 2]
number.yaml :: number.yaml holds no keys, but 3
base_number.yaml :: _BASE_=3
base_none.yaml :: none.yaml
base_self.yaml :: leads back to the file itself
base_list.yaml :: _BASE_=
latin.yaml :: latin.yaml is not UTF-8
tabs.yaml :: tabs.yaml is not YAML
object.yaml :: object.yaml is not YAML
nested.yaml :: nested.yaml is not YAML
"""
READERS = ["classify", "gan train", "sweep", "search run", "search try x", "detect train"]

# What is wrong with an option, whichever training reads it.
OPTIONS = """
frobnicate=1 :: there is no option 'frobnicate'
=3 :: '=3' is not of the form key=value
norm :: 'norm' is not of the form key=value
--frobnicate :: unrecognized arguments: --frobnicate
seed=-1 :: seed=-1
seed=1.5 :: seed=1.5 is not int
seed=1e30 :: seed='1e30' is not int
seed=yes :: seed=True is not int
seed=[1 :: cannot read the value of 'seed=[1'
output_dir= :: output_dir=: the name is empty
output_dir=text :: output_dir=text is a file, not a folder
output_dir=text/run :: text is a file, not a folder
output_dir=/proc/run :: /proc/run
device=banana :: 'banana' is no device
device=mps :: 'mps' is no device
device=cuda:99 :: cuda:99
device=3 :: device
workers=-1 :: workers=-1
workers=9999 :: workers=9999
precision=fp8 :: precision='fp8' is not one of
batch_size=0 :: batch_size=0 must be at least 1
batch_size=many :: batch_size='many' is not int
batch_size=null :: batch_size=None is not int
batch_size=99999999 :: batch_size=99999999
norm=EvoNormS7 :: EvoNormS7
norm=EvoNormS0) :: EvoNormS0)
norm=EvoNormS0(groups=no) :: EvoNormS0(groups=no)
norm=EvoNormS0(groups=0) :: groups
norm=EvoNormS0(eps=1e400) :: eps
norm=EvoNormS0(frobnicate=1) :: frobnicate
norm=none.json :: none.json
norm=dt.json :: dt.json
norm=deep.json :: deep.json
norm=[EvoNormS0] :: norm=['EvoNormS0']
data= :: data
data=none :: data=none
data=none.zip :: none.zip
data=text :: text
data=nothing :: nothing
data=cut.zip :: cut.zip
data=flat.zip :: flat.zip
data=classify.yaml :: classify.yaml
"""
TRAININGS = ["classify --config classify.yaml", "gan train --config gan.yaml"]

SINGLE = """
 :: COMMAND
frobnicate :: 'frobnicate'
eval :: COMMAND
eval fid :: 'fid'
gan :: COMMAND
gan grow :: 'grow'
search :: COMMAND
search find :: 'find'
detect :: COMMAND
detect test :: 'test'
classify :: --config
classify --config :: --config
classify --config classify.yaml lr=fast :: lr='fast' is not float
classify --config classify.yaml epochs=-1 :: epochs=-1
classify --config classify.yaml epochs=1e999 :: epochs
classify --config classify.yaml model=resnet0 :: resnet0
classify --config classify.yaml model=timm:resnet0 :: resnet0
classify --config classify.yaml model=keras:resnet50 :: keras
classify --config classify.yaml model_options={banana:1} :: banana
classify --config classify.yaml width=-1 :: width=-1
classify --config classify.yaml val_data=none.zip :: val_data=none.zip
classify --config classify.yaml holdout=99 :: holdout=99
classify --config classify.yaml reader=banana :: reader='banana'
classify --config classify.yaml augment=banana :: augment='banana'
classify --config classify.yaml batch_size=100 :: batch_size=100
classify --config classify.yaml lr=nan :: lr=nan
classify --config classify.yaml schedule=banana :: schedule='banana'
classify --config classify.yaml ema_decay=2 :: ema_decay=2
classify --config classify.yaml label_smoothing=-1 :: label_smoothing=-1
classify --config classify.yaml val_resolution=9999 :: val_resolution=9999
gan train :: --config
gan train --config gan.yaml --seeds 0,0 :: '0,0'
gan train --config gan.yaml --seeds banana :: 'banana'
gan train --config gan.yaml --seeds -1 :: --seeds
gan train --config gan.yaml resolution=33 :: resolution=33
gan train --config gan.yaml channels=0 :: channels=0
gan train --config gan.yaml attention=[7] :: attention
gan train --config gan.yaml channel_multipliers=[2] :: channel_multipliers
gan train --config gan.yaml steps=-1 :: steps=-1
gan train --config gan.yaml d_steps=0 :: d_steps=0
gan train --config gan.yaml g_lr=fast :: g_lr='fast' is not float
gan train --config gan.yaml g_lr=nan :: g_lr=nan
gan train --config gan.yaml accumulations=3 :: accumulations=3
gan train --config gan.yaml extractor=none.pt :: none.pt
gan train --config gan.yaml extractor=text :: text
gan train --config gan.yaml extractor=evil.pt :: evil.pt
gan train --config gan.yaml image_channels=2 :: image_channels=2
gan train --config gan.yaml small_images=banana :: small_images='banana'
gan train --config gan.yaml resolution=64 channel_multipliers=[2,2,2,1,1] :: 32x32
gan sample :: --checkpoint
gan sample --checkpoint none.pt --out new.png :: none.pt
gan sample --checkpoint text --out new.png :: text
gan sample --checkpoint evil.pt --out new.png :: evil.pt
gan sample --checkpoint list.pt --out new.png :: list.pt
gan sample --checkpoint bare.pt --out new.png :: bare.pt
gan sample --checkpoint bare.pt --out new.jpg :: new.jpg
gan sample --checkpoint bare.pt --out images :: images
gan sample --checkpoint bare.pt --out text/new.png :: text
gan sample --checkpoint bare.pt --out bare.pt :: bare.pt
gan sample --checkpoint bare.pt --out new.png --n 0 :: --n 0
gan sample --checkpoint bare.pt --out new.png --seed -1 :: --seed
gan sample --checkpoint bare.pt --out new.png --batch-size 0 :: --batch-size 0
gan sample --checkpoint bare.pt --out new.png --device banana :: 'banana'
gan sample --checkpoint bare.pt --out new.png --interpolate w :: 'w'
gan sample --checkpoint bare.pt --out new.npz --interpolate z :: new.npz
gan sample --checkpoint bare.pt --out mine.json :: mine.json
sweep :: --config
classify --config unknown.yaml :: 'frobnicate'
gan train --config unknown.yaml :: 'frobnicate'
search run --config unknown.yaml :: 'frobnicate'
search try x --config unknown.yaml :: 'frobnicate'
detect train --config unknown.yaml :: 'frobnicate'
sweep --config unknown.yaml :: base
sweep --config sweep.yaml frobnicate=1 :: 'frobnicate'
sweep --config sweep.yaml trials=0 :: trials=0
sweep --config sweep.yaml trials=many :: trials='many'
sweep --config sweep.yaml search={} :: search
sweep --config sweep.yaml search={banana:[1]} :: banana
sweep --config sweep.yaml search={lr:0.1} :: lr
sweep --config sweep.yaml search={lr:[fast]} :: lr
sweep --config sweep.yaml search={lr:[]} :: lr
sweep --config sweep.yaml base=none.yaml :: none.yaml
sweep --config sweep.yaml base=list.yaml :: list.yaml
sweep --config sweep.yaml data=none.zip :: none.zip
sweep --config sweep.yaml output_dir=text :: text
sweep --config sweep.yaml cpus_per_trial=0 :: cpus_per_trial=0
sweep --config sweep.yaml search_seed=-1 :: search_seed=-1
search run :: --config
search run --config search.yaml frobnicate=1 :: frobnicate
search run --config search.yaml data=none.zip :: none.zip
search run --config search.yaml data=text :: text
search run --config search.yaml holdout=99 :: holdout=99
search run --config search.yaml candidates=-1 :: candidates=-1
search run --config search.yaml space=Q :: 'Q'
search run --config search.yaml seed=-1 :: seed=-1
search run --config search.yaml anchors=[] :: anchors
search run --config search.yaml anchors=[resnet0] :: resnet0
search run --config search.yaml store= :: store
search run --config search.yaml store=text :: text
search run --config search.yaml store=text/x.sqlite :: text
search run --config search.yaml store=images :: images
search run --config search.yaml device=banana :: banana
search run --config search.yaml hours=-1 :: hours
search run --config search.yaml batch_size=0 :: batch_size=0
search try :: layer
search try x :: --config
search try "x +" --config search.yaml :: x +
search try EvoNormS7 --config search.yaml :: EvoNormS7
search try none.json --config search.yaml :: none.json
search try "relu(x)" --config search.yaml :: relu
search try "x + y" --config search.yaml :: y
search try "x ** 2" --config search.yaml :: **
search try "__import__('os')" --config search.yaml :: __import__
search try x --config search.yaml --threads 0 :: --threads
search try x --config search.yaml data=none.zip :: none.zip
search layer :: formula
search layer x :: LAYER.json
search layer "x / " new.json :: x /
search layer "std(x)" new.json :: std
search layer "std_{q}(x)" new.json :: std_{q}
search layer "x" gt.json :: gt.json
search layer "x" text/new.json :: text
search layer "x" images :: images
search top none.sqlite :: none.sqlite
search top text :: text
search top images :: images
search top text --count 0 :: --count
search show none.sqlite :: none.sqlite
search show text 3 :: text
search show text banana :: banana
search export none.sqlite 3 new.json :: none.sqlite
search export text 3 new.json :: text
search plot top a=none.sqlite --out new.png :: none.sqlite
search plot top none.sqlite --out new.png :: 'none.sqlite' is not of the form LABEL=STORE
search plot banana a=text --out new.png :: 'banana'
search plot top a=text --out text/new.png :: text
search plot top a=text --out mine.json :: mine.json
search rerank none.sqlite --config classify.yaml --out new :: none.sqlite
search rerank text --config classify.yaml --out new :: text
search rerank --config classify.yaml --out new :: --layers
search rerank --layers relu(x) --config classify.yaml --out new :: relu
search ranking none :: none
search ranking text :: text
search candidates 3 :: 3
search simulate --workers 0 :: --workers
search simulate --candidates many :: --candidates
search simulate --seconds nan :: --seconds
search simulate --seconds inf :: --seconds
search simulate --seconds -1 :: --seconds
search simulate --processes 0 :: --processes
convert :: model, norm
convert resnet18 :: norm
convert resnt18 EvoNormS0 :: 'resnt18'
convert keras:resnet18 EvoNormS0 :: keras
convert resnet18 EvoNormS7 :: EvoNormS7
convert resnet18 EvoNormS0) :: EvoNormS0)
convert resnet18 EvoNormS0(groups=0) :: groups
convert resnet18 none.json :: none.json
convert resnet18 EvoNormS0 --size 0 :: --size
convert resnet18 EvoNormS0 --size big :: --size
convert resnet18 EvoNormS0 --keep banana :: banana
convert alexnet EvoNormS0 :: AlexNet holds no norm
config banana :: banana
eval ap :: --gt and --dt
eval ap --gt gt.json :: --gt and --dt
eval ap --gt none.json --dt dt.json :: none.json
eval ap --gt gt.json --dt none.json :: none.json
eval ap --gt empty --dt dt.json :: empty
eval ap --gt cut.json --dt dt.json :: cut.json
eval ap --gt deep.json --dt dt.json :: deep.json
eval ap --gt latin.json --dt dt.json :: latin.json
eval ap --gt object.json --dt dt.json :: object.json
eval ap --gt dt.json --dt dt.json :: dt.json
eval ap --gt images --dt dt.json :: images
eval ap --gt gt.json --dt object.json :: object.json
eval ap --gt gt.json --dt deep.json :: deep.json
eval ap --gt gt.json --dt image.json :: image_id
eval ap --gt gt.json --dt category.json :: category_id
eval ap --gt gt.json --dt score.json :: 'high'
eval ap --gt gt.json --dt nan.json :: nan
eval ap --gt gt.json --dt box.json :: [1, 2, 3]
eval ap --gt gt.json --dt negative.json :: negative
eval ap --gt gt.json --dt dt.json --iou oks :: 'oks'
eval ap --gt gt.json --dt dt.json --max-dets 0 :: --max-dets
eval ap --gt gt.json --dt dt.json --max-dets 10 1 :: rise
eval ap --gt gt.json --dt dt.json --evaluator banana :: 'banana'
eval ap --gt gt.json --dt dt.json --out gt.json :: gt.json
eval ap --gt gt.json --dt dt.json --out dt.json --force :: dt.json
eval ap --gt gt.json --dt dt.json --out mine.json :: mine.json
eval ap --gt gt.json --dt dt.json --out text/x.json :: text
eval ap --gt gt.json --dt dt.json --out images :: images
eval ap --gt gt.json --dt dt.json --grid new.png :: --grid
eval ap --gt gt.json --dt dt.json --save-dt new.json :: --save-dt
eval ap --config-file none.yaml :: --config-file
eval gan :: --fake or --checkpoint
eval gan --fake none :: none
eval gan --fake nothing :: nothing
eval gan --fake text :: text
eval gan --fake cut.zip :: cut.zip
eval gan --fake float.npy :: float.npy
eval gan --fake flat.npy :: flat.npy
eval gan --fake objects.npy :: objects.npy
eval gan --fake float.npy --float-range 1 1 :: --float-range
eval gan --fake float.npy --float-range nan 1 :: nan
eval gan --fake float.npy --float-range 0 inf :: inf
eval gan --fake images --fid :: --real
eval gan --fake images --real none :: none
eval gan --fake images --real mu.npz :: mu.npz
eval gan --fake images --real evil.pt :: evil.pt
eval gan --fake images --n 0 :: --n
eval gan --fake images --n 99 :: 99
eval gan --fake images --splits 0 :: --splits
eval gan --fake images --seeds -1 :: --seeds
eval gan --fake images --seeds 0 1 :: --seeds
eval gan --fake images --truncation 0.5 :: --truncation
eval gan --fake images --backend banana :: 'banana'
eval gan --fake images --precision fp8 :: 'fp8'
eval gan --fake images --device banana :: 'banana'
eval gan --fake images --device mps :: 'mps'
eval gan --fake images --workers -1 :: --workers
eval gan --fake images --batch-size 0 :: --batch-size
eval gan --fake images --splits 1 --inception-weights none.pth :: none.pth
eval gan --fake images --splits 1 --inception-weights text :: text
eval gan --fake images --splits 1 --feature-extractor none.pt :: none.pt
eval gan --fake images --splits 1 --feature-extractor evil.pt :: evil.pt
eval gan --fake images --splits 1 --feature-extractor dinov3 :: dinov2-vit-b-14
eval gan --fake images --feature-extractor clip-vit-b-32 :: clip-vit-b-32 gives features alone
eval gan --fake images --real images --is --feature-extractor vgg16 :: --is
NAMED dinov2-vit-b-14 :: dinov2_vitb14_pretrain.pth
eval gan --fake images --feature-extractor-weights text :: --inception-weights
NAMED vgg16 --feature-extractor-weights none :: none
NAMED vgg16 --feature-extractor-weights text :: text
eval gan --fake images --inception-weights https://a.b/c.pth :: https://a.b/c.pth
eval gan --fake images --real images --dc --dc-neighbours 0 :: --dc-neighbours
eval gan --fake images --real images --dc --dc-neighbours 6 :: there are 6
eval gan --fake images --real images --dc --dc-neighbours five :: 'five'
eval gan --fake images --real images --fd-infinity :: 5000
eval gan --fake images --real images --fd-infinity --fd-infinity-smallest 6 :: 6
eval gan --fake images --real images --fd-infinity --fd-infinity-smallest -3 :: -3
eval gan --fake images --real images --fd-infinity --fd-infinity-smallest 1 :: 1 (at least 2)
eval gan --fake images --real images --fd-infinity --fd-infinity-points 0 :: --fd-infinity-points
eval gan --fake images --real images --fid --as-trained :: --as-trained
eval gan --fake images --real list.pt --fid :: list.pt
eval gan --fake images --real https://a.b/c.npz :: https://a.b/c.npz
eval gan --fake images --inception-weights text --out text :: text
eval gan --fake images --out mine.json :: mine.json
eval gan --fake images --out text/x.json :: text
eval gan --fake images --grid new.jpg :: new.jpg
eval gan --checkpoint none.pt --n 2 :: none.pt
eval gan --checkpoint evil.pt --n 2 :: evil.pt
eval gan --checkpoint list.pt --n 2 :: list.pt
eval gan --checkpoint bare.pt --n 2 :: bare.pt
eval gan --checkpoint bare.pt --seeds 0 0 :: --seeds
eval stats :: --real, --out
eval stats --real images --out new.txt :: new.txt
eval stats --real none --out new.npz :: none
eval stats --real images --out mu.npz :: mu.npz
eval stats --real images --out text/x.npz :: text
eval stats --real images --out new.npz --n-real 99 :: 99
eval stats --real images --out new.npz --feature-extractor dinov3 :: dinov2-vit-b-14
eval stats --real images --out new.npz --inception-weights https://a.b/c.pth :: https://a.b/c.pth
eval table :: METRICS.json
eval table none.json :: none.json
eval table mine.json :: mine.json
eval table cut.json :: cut.json
eval table deep.json :: deep.json
eval table latin.json :: latin.json
eval table empty :: empty
detect train --frobnicate :: --frobnicate
detect train --train-json gt.json VAL :: train_images
detect train --train-json none.json --train-images images VAL :: none.json
detect train --train-json gt.json --train-images none VAL :: none
detect train --train-json cut.json --train-images images VAL :: cut.json
detect train --train-json deep.json --train-images images VAL :: deep.json
detect train --train-json gt.json --train-images nothing VAL :: nothing
DETECT --model banana :: banana
DETECT --norm EvoNormS7 :: EvoNormS7
DETECT --norm EvoNormS0) :: EvoNormS0)
DETECT --weights none.pt :: none.pt
DETECT --weights evil.pt :: evil.pt
DETECT --batch 0 :: batch
DETECT --batch many :: --batch
DETECT --iterations -1 :: iterations
DETECT --lr nan :: lr
DETECT --momentum 2 :: momentum
DETECT --warmup -1 :: warmup
DETECT --schedule banana :: banana
DETECT --steps 10 5 :: steps
DETECT --clip-gradients -1 :: clip_gradients
DETECT --min-size 0 :: min_size
DETECT --min-size 900 --max-size 800 :: 900
DETECT --seed -1 :: seed
DETECT --output-dir text :: text
DETECT --output-dir text/x :: text
DETECT --workers -1 :: workers
DETECT --workers 9999 :: workers
DETECT --device banana :: banana
DETECT --device mps :: mps
DETECT frobnicate=1 :: frobnicate
DETECT banana :: 'banana'
DETECT --config none.yaml :: none.yaml
bench --frobnicate :: --frobnicate
bench --out text/x.csv :: --out
"""


def lines():
    found = []
    train = "--train-json gt.json --train-images images"
    val = "--val-json gt.json --val-images images"
    for text in SINGLE.strip("\n").splitlines():
        command, _, message = text.partition("::")
        command = command.replace("DETECT", f"detect train {train} VAL --output-dir new")
        command = command.replace(
            "NAMED", "eval gan --fake images --real images --feature-extractor"
        )
        found.append((command.replace("VAL", val).strip(), message.strip()))
    for table, commands in ((FILES, READERS), (OPTIONS, TRAININGS)):
        for text in table.strip().splitlines():
            given, _, message = map(str.strip, text.partition("::"))
            between = " --config " if table is FILES else " "
            found += [(f"{command}{between}{shlex.quote(given)}", message) for command in commands]
    return found


def snapshot(folder):
    """What there is, and how it was last written."""
    return {str(p): p.stat().st_mtime_ns for p in Path(folder).rglob("*")}


def test_there_are_enough():
    assert len(lines()) >= 300


@pytest.mark.parametrize(("line", "message"), lines(), ids=[line for line, _ in lines()])
def test_mistake(line, message, world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(world / "cache"))
    monkeypatch.setattr("urllib.request.urlopen", None)  # nothing is worth a download
    before = snapshot(world)
    try:
        status = cli.main(shlex.split(line))
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    assert status == 2, f"{out}{err}"
    said = [text for text in err.splitlines() if not text.startswith("warning: ")]
    assert len(said) == 1, err
    assert said[0].startswith("error: ")
    assert message in said[0]
    assert out == ""
    left = {p: t for p, t in snapshot(world).items() if not p.startswith(f"{world}/cache")}
    assert left == {p: t for p, t in before.items() if not p.startswith(f"{world}/cache")}
    assert not os.path.exists("pwned")
