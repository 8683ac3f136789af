"""FID of two small sets by the tools that publish it, kept beside this file.

In an environment of its own:
    pip install torch==2.13.0 torchvision==0.28.0 torchmetrics==1.9.0 torch-fidelity==0.4.0 \
        pytorch-fid==0.3.0
    python tests/evaluation/metrics/peers/make_fid.py

Weights and images come from `formula`, which the test repeats, so that only numbers are kept.
"""

import json
import math
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytorch_fid.inception
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

SIDE, COUNT, KEPT = 64, 6, 12


def formula(shape, index):
    """Numbers in [-1, 1] of the weight at an index of the sorted names."""
    numbers = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(numbers * 1.7 + (index + 1) * numbers.sqrt()).float().view(shape)


def weights(shapes):
    """Of an InceptionV3: convolutions that keep the scale of activations, norms without effect."""
    found = {}
    for index, name in enumerate(sorted(shapes)):
        shape = tuple(shapes[name])
        if len(shape) > 1:
            found[name] = formula(shape, index) * 2.2 / math.sqrt(math.prod(shape[1:]))
        elif name.endswith(("running_var", "bn.weight")):
            found[name] = torch.ones(shape)
        else:
            found[name] = torch.zeros(shape)
    return found


def images():
    """Two sets (COUNT, SIDE, SIDE, 3) uint8 with edges, of which one is brighter."""
    rows = torch.arange(SIDE)[:, None, None]
    columns = torch.arange(SIDE)[None, :, None]
    colours = torch.arange(3)[None, None, :]
    made = []
    for number in range(2 * COUNT):
        stripes = ((rows * (number + 2) + columns * (number + 5)) // 7 + colours * number) % 5
        made.append((stripes * 40 + 60 * (number >= COUNT)).to(torch.uint8))
    return torch.stack(made[:COUNT]), torch.stack(made[COUNT:])


def state_dict():
    """The weights by torch-fidelity's names, its counters included."""
    load = torch.load, FeatureExtractorInceptionV3.load_state_dict
    torch.load, FeatureExtractorInceptionV3.load_state_dict = (
        lambda *_, **__: {},
        lambda *_: None,
    )
    blank = FeatureExtractorInceptionV3("blank", ["2048"], "no file").state_dict()
    torch.load, FeatureExtractorInceptionV3.load_state_dict = load
    return {**blank, **weights({name: each.shape for name, each in blank.items() if each.ndim})}


def main(target=None):
    first, second = (each.movedim(-1, 1) for each in images())
    with tempfile.TemporaryDirectory() as directory:
        path, full = f"{directory}/inception.pth", state_dict()
        torch.save(full, path)
        found = {
            "pytorch-fid": by_pytorch_fid(full, first, second),
            "torch-fidelity": by_torch_fidelity(path, first, second),
            "torchmetrics": by_torchmetrics(path, first, second, antialias=True),
            "torchmetrics antialias=False": by_torchmetrics(path, first, second, antialias=False),
        }
    tools = ("torch", "torchmetrics", "torch-fidelity", "pytorch-fid")
    tree = {"versions": {tool: version(tool) for tool in tools}, "tools": found}
    target = target or Path(__file__).with_name("fid.json")
    target.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def by_pytorch_fid(state, first, second):
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    network = pytorch_fid.inception.InceptionV3([3]).eval()
    with torch.no_grad():
        features = [network(each.float() / 255)[0][:, :, 0, 0] for each in (first, second)]
    moments = []
    for each in features:
        each = each.double().numpy()
        moments += [each.mean(axis=0), torch.cov(torch.from_numpy(each).T).numpy()]
    return described(features[0], calculate_frechet_distance(*moments))


def by_torch_fidelity(path, first, second):
    network = FeatureExtractorInceptionV3("fid", ["2048"], path)
    with torch.no_grad():
        features = [network(each)[0] for each in (first, second)]
    statistics = [fid_features_to_statistics(each) for each in features]
    value = fid_statistics_to_metric(*statistics, verbose=False)
    return described(features[0], next(iter(value.values())))


def by_torchmetrics(path, first, second, *, antialias):
    metric = FrechetInceptionDistance(
        2048, feature_extractor_weights_path=path, antialias=antialias
    )
    metric.set_dtype(torch.float64)
    with torch.no_grad():
        features = metric.inception(first)
        metric.update(first, real=True)
        metric.update(second, real=False)
        value = metric.compute()
    return described(features, value)


def described(features, value):
    kept = features.double()[:, :KEPT]
    return {"fid": float(value), "features": [[round(x, 9) for x in row] for row in kept.tolist()]}


if __name__ == "__main__":
    main()
