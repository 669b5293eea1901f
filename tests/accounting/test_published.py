"""Every figure that was published, counted again: 214 networks, the headline table, and others of the same kinds."""

import math
from collections import Counter

import pytest
import torch
from timm.layers import Attention

from convnn import Blend, ConvNNAttention, Grid, Random
from convnn.accounting.counting import CONVENTIONS, record_products
from convnn.accounting.headline import PUBLISHED, cut
from convnn.models import create_model, published

from ..published_rows import build, image_of, name_of, rows

PRODUCTS = ("conv2d", "mm", "addmm", "bmm")
# One row of every kind of layer, for what takes a training pass.
KINDS = {tuple(row.get(key) for key in ("model", "layer", "similarity_type", "sampling_type", "convolution_type")): row
         for row in rows()}  # fmt: skip


def without_numbers(make):
    with torch.device("meta"):
        return make()


def counted(model, shape):
    """Return FLOPs by convention and operator."""
    record = record_products(model, [torch.zeros(shape, device="meta")])
    return {convention: sum(record.costs(convention), Counter()) for convention in CONVENTIONS}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("row", rows(), ids=name_of)
def test_every_published_network(row):
    """Parameters, FLOPs by operator, and in one network of every kind the dropout: each network is built once."""
    model, image = without_numbers(lambda: build(row)), image_of(row)
    assert sum(parameter.numel() for parameter in model.parameters()) == row["params"]
    totals = counted(model, image)
    printed = row["gflops_profiler_by_op"]
    for name in (*PRODUCTS, "add"):  # to the file's eight digits
        assert totals["published"][name] / 1e9 == pytest.approx(printed.get(f"aten::{name}", 0), abs=5.01e-9), name
    # The products of elements that it also prints are those of training; its total has those of evaluation, as ours.
    assert totals["published"].total() / 1e9 == pytest.approx(row["gflops_profiler"], abs=5.01e-9)
    assert totals["gather"].total() / 1e9 == pytest.approx(row["gflops_true"], abs=5.01e-7)
    if row in KINDS.values():
        products = totals["published"]["mul"] + dropped_out(model, image)
        assert products / 1e9 == pytest.approx(printed["aten::mul"], abs=5.01e-9)


def dropped_out(model, image):
    """How many elements are dropped out, or kept, in a training pass: each is one product with its mask."""
    elements = []
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout) and part.p:
            part.register_forward_hook(lambda _, __, out: elements.append(out.numel()))
        elif isinstance(part, Attention | ConvNNAttention) and part.attn_drop.p:
            # Inside the attention: every weight of a token for another, those of all but the k nearest being zero.
            part.register_forward_hook(lambda part, inputs, _: elements.append(inputs[0].shape[1] ** 2))
    model.train()(torch.zeros(image, device="meta"))
    return sum(elements)


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.name)
def test_the_headline_to_the_digit(row, headline_rows):
    ours = headline_rows[row.name]
    assert cut(ours.parameters / 1e6) == f"{row.parameters:.3f}"
    assert cut(ours.flops["published"] / 1e9) == f"{row.gflops:.3f}"


# What the table's last two columns print, and what the same models cost in full.
HEADLINE = {
    "resnet50_conv": (25_583_592, "8.178", 8.18),
    "resnet50_convnn_all": (25_557_032, "10.321", 13.33),
    "resnet50_hybrid_all": (26_474_760, "10.655", 13.66),
    "resnet50_hybrid_random32": (26_474_760, "5.596", 8.60),
    "resnet50_hybrid_grid5": (26_474_760, "5.576", 8.58),
}


@pytest.mark.parametrize("name", HEADLINE)
def test_the_headline_by_convention(name, headline_rows):
    parameters, printed, in_full = HEADLINE[name]
    row = headline_rows[name]
    assert row.parameters == parameters
    assert cut(row.flops["published"] / 1e9) == printed
    assert row.flops["gather"] / 1e9 == pytest.approx(in_full, abs=0.005)


def test_only_what_is_executed_makes_the_sampled_hybrids_cheaper(headline_rows):
    """The published count says that they are; gathered in full they are not; executed they are."""
    flops = {name: row.flops for name, row in headline_rows.items()}
    baseline = flops["resnet50_conv"]
    assert len(set(baseline.values())) == 1
    for name, executed in (("resnet50_hybrid_random32", 7.49), ("resnet50_hybrid_grid5", 7.42)):
        assert flops[name]["published"] < 0.7 * baseline["published"]
        assert flops[name]["gather"] > 1.04 * baseline["gather"]
        assert flops[name]["executed"] < 0.92 * baseline["executed"]
        assert flops[name]["executed"] / 1e9 == pytest.approx(executed, abs=0.005)


def test_executed_headline_by_hand(headline_rows):
    """13 layers, their maps padded by one: r candidates, whose slots are applied first; half the channels convolve."""
    stages = ((56, 64, 3), (28, 128, 3), (14, 256, 5), (7, 512, 2))
    rest = headline_rows["resnet50_conv"].flops["executed"]
    for name, r in (("resnet50_hybrid_random32", 32), ("resnet50_hybrid_grid5", 25)):
        total = rest
        for side, width, count in stages:
            tokens, half = side * side, width // 2
            convnn = 2 * tokens * r * width + 2 * (tokens + r * 8) * width * half
            hybrid = convnn + 2 * tokens * 9 * width * half + 2 * tokens * width * width
            total += count * (hybrid - 2 * tokens * 9 * width * width)
        assert headline_rows[name].flops["executed"] == total


# name, published GFLOPs, true GFLOPs, to four digits, as the published tables have them.
TRUE_COSTS = [
    ("vgg11_conv", {}, 0.2937, 0.5992),
    ("vgg11_convnn_all", {}, 0.3253, 0.6309),
    ("vgg11_hybrid_all", {}, 0.3253, 0.6309),
    ("vgg11_hybrid_random16", {}, 0.2971, 0.6026),
    ("vit_tiny_attention", {}, 2.5079, 2.5070),
    ("vit_tiny_convnn_all", {}, 2.3332, 2.3363),
    ("vit_tiny_convnn_random32", {}, 2.0374, 2.0406),
    ("vit_tiny_convnn_standard", {"num_classes": 100}, 2.3332, 3.8968),
]


@pytest.mark.parametrize(("name", "options", "printed", "true"), TRUE_COSTS, ids=[case[0] for case in TRUE_COSTS])
def test_true_costs(name, options, printed, true):
    side = 32 if name.startswith("vgg") else 224
    totals = counted(without_numbers(lambda: create_model(name, **options)), (1, 3, side, side))
    assert totals["published"].total() / 1e9 == pytest.approx(printed, abs=5.01e-5)
    assert totals["gather"].total() / 1e9 == pytest.approx(true, abs=5.01e-5)


VGG = [
    (32, 3, 64),
    (16, 64, 128),
    (8, 128, 256),
    (8, 256, 256),
    (4, 256, 512),
    (4, 512, 512),
    (2, 512, 512),
    (2, 512, 512),
]


def vgg_by_hand(*, classes, k, ratio, kernel, samples=None, grid=None, blend=False, coordinates=False):
    """The FLOPs of VGG-11 with 8 hybrid layers: those printed, and those of the convolutions that were not."""
    seen = Counter({"addmm": 2 * (25088 * 4096 + 4096 * 4096 + 4096 * classes)})
    unseen = 0
    for side, into, out in VGG:
        share, tokens, padded = math.floor(ratio * out), side * side, side + 2
        candidates = padded**2
        if samples is not None:
            candidates = min(samples, candidates)
        if grid is not None and grid <= padded:
            candidates = grid * grid
        if share:
            seen["bmm"] += 2 * padded**2 * candidates * (into + 2 * blend)
            unseen += 2 * tokens * k * (into + 2 * coordinates) * share
        unseen += 2 * tokens * kernel * kernel * into * (out - share)
        seen["conv2d"] += 2 * tokens * out * out
    return seen, unseen


OTHERS = [
    {"classes": 10, "k": 13, "ratio": 0.5, "kernel": 3},
    {"classes": 100, "k": 2, "ratio": 0.25, "kernel": 5, "samples": 50},
    {"classes": 7, "k": 16, "ratio": 0.9, "kernel": 1, "samples": 17},
    {"classes": 10, "k": 9, "ratio": 0.3, "kernel": 2, "grid": 7},
    {"classes": 10, "k": 4, "ratio": 1.0, "kernel": 3, "grid": 3, "blend": True},
    {"classes": 10, "k": 6, "ratio": 0.625, "kernel": 4, "blend": True, "coordinates": True, "samples": 333},
    {"classes": 10, "k": 9, "ratio": 0.0, "kernel": 2},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_vgg11_beyond_the_published(case):
    candidates = Random(case["samples"]) if "samples" in case else Grid(case["grid"]) if "grid" in case else "all"
    similarity = Blend(0.5) if case.get("blend") else "cosine"
    model = without_numbers(
        lambda: published.vgg11(
            case["classes"], k=case["k"], branch_ratio=case["ratio"], kernel_size=case["kernel"],
            candidates=candidates, similarity=similarity, value_coordinates=case.get("coordinates", False),
        )
    )  # fmt: skip
    totals = counted(model, (1, 3, 32, 32))
    seen, unseen = vgg_by_hand(**case)
    assert {name: totals["published"][name] for name in seen} == seen
    assert totals["gather"].total() == seen.total() + unseen


@pytest.mark.parametrize("aggregation", ["depthwise", "standard"])
@pytest.mark.parametrize(("candidates", "r"), [("all", 197), (Random(50), 50), (Grid(11), 11), (Random(300), 197)])
def test_vit_tiny_beyond_the_published(aggregation, candidates, r):
    k, classes = 7, 37
    options = {"k": k, "candidates": candidates, "aggregation": aggregation}
    totals = counted(without_numbers(lambda: published.vit_tiny(classes, **options)), (1, 3, 224, 224))
    slots = k * 192 * (192 if aggregation == "standard" else 1)
    products = {
        "conv2d": 2 * 196 * 768 * 192,
        "mm": 12 * 2 * 192 * 192 * (3 * 197 + r),
        "bmm": 12 * 2 * 197 * r * 192,
        "addmm": 12 * 2 * 2 * 197 * 192 * 768 + 2 * 192 * classes,
    }
    assert {name: totals["published"][name] for name in PRODUCTS} == products
    assert totals["gather"] == {**products, "conv1d": 12 * 2 * 197 * slots}
