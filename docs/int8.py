"""What int8 weights in the transformer would give on a CPU: ``python -m docs.int8 --json``, from the repository's root.

The linear layers of the transformer are torch's dynamically quantised ones (rows in int8, weights in int8 per channel),
the diffusion head is what it is. The pack does not offer this; docs/performance.md says why.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import nn

from demo.experiments import FILES
from docs.measuring import Program
from gtr_core.costs.bench import BenchCase, Setting, bench, random_model
from gtr_core.demo import DEMO_REFERENCE
from gtr_core.evaluation import tables
from gtr_core.evaluation.evaluate import Task
from gtr_core.evaluation.features import load_reference
from gtr_core.models import Model, published_specs
from gtr_core.plans.fts import FTS
from gtr_core.plans.method import Guidance, Method
from gtr_core.plans.presets import preset

ENGINE = "onednn"
ROUNDS = 9
# Rows of an image, inputs and outputs of MAR-B's MLP.
SHAPES = ((128, 768, 3072), (128, 3072, 768), (640, 768, 3072))


def quantized(module: nn.Module) -> nn.Module:
    """A copy with every linear layer in int8."""
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(module), {nn.Linear}, dtype=torch.qint8)


def quantized_model(model: Model) -> Model:
    """A copy whose blocks have int8 layers."""
    twin = copy.deepcopy(model)
    for name in ("encoder_blocks", "decoder_blocks"):
        setattr(twin, name, quantized(getattr(twin, name)))
    return twin


@torch.no_grad()
def products() -> list[dict]:
    """Giga operations per second of one linear layer, packed as the pack does it, and its mean relative error."""
    found = []
    for rows, inputs, outputs in SHAPES:
        layer, x = nn.Linear(inputs, outputs), torch.randn(rows, inputs, generator=torch.Generator().manual_seed(0))
        bias, low = layer.bias, x.bfloat16()
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().bfloat16(), None)
        integer = quantized(nn.Sequential(layer))
        runs = {
            "bfloat16": lambda: torch.ops.mkldnn._linear_pointwise(low, packed, bias.bfloat16(), "none", [], ""),
            "int8": lambda: integer(x),
        }
        exact, seconds = layer(x), {name: [] for name in runs}
        error = {name: float((call().float() - exact).abs().mean() / exact.abs().mean()) for name, call in runs.items()}
        for _ in range(ROUNDS):
            for name, call in runs.items():
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
        speed = {name: 2e-9 * rows * inputs * outputs / median(values) for name, values in seconds.items()}
        found.append({"shape": [rows, inputs, outputs], "giga_operations": speed, "error": error})
    return found


def whole_runs() -> dict:
    """MAR-B with `gtr-paper`: seconds of one image, all kinds in turn."""
    spec, method = published_specs()["mar-b"], Method(preset("gtr-paper"), Guidance(3.0), FTS())
    models = {dtype: random_model(spec, "cpu", dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds: dict[str, list[float]] = {}
    kinds = {
        "float32": (models[torch.float32], torch.float32),
        "bfloat16": (models[torch.bfloat16], torch.bfloat16),
        "int8": (quantized_model(models[torch.float32]), torch.float32),
    }
    for _ in range(3):
        for name, (model, dtype) in kinds.items():
            result = bench({dtype: model}, [BenchCase(name, method, dtype)], Setting(), rounds=1)
            seconds.setdefault(name, []).append(result["rows"][0]["seconds"])
    return {name: median(values) for name, values in seconds.items()}


def quality(images: int, seeds: Sequence[int]) -> list[dict]:
    """The demo model by `gtr-paper` in float32 and in int8, against real images."""
    evaluation = replace(FILES, dtype=torch.float32).open("cpu")
    reference = load_reference(DEMO_REFERENCE, evaluation.extractor)
    integer, method = replace(evaluation, model=quantized_model(evaluation.model)), Method(preset("gtr-paper"))
    measured = {
        name: [own.measure(Task(method, seed, 0, images), 32) for seed in seeds]
        for name, own in (("float32", evaluation), ("int8", integer))
    }
    return tables.rows(measured, seeds, tables.AgainstReal(reference, images), {})


def measure(images: int, seeds: int) -> dict:
    """With so many images per seed for the quality."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    torch.backends.quantized.engine = ENGINE
    return {"engine": ENGINE, "products": products(), "seconds": whole_runs(), "quality": quality(images, range(seeds))}


def lines(result: dict) -> Iterator[str]:
    for own in result["products"]:
        yield f"{own['shape']}: {own['giga_operations']} giga operations per second, error {own['error']}"
    yield f"MAR-B: {result['seconds']} seconds"
    yield f"int8 against float32: {result['quality'][1]['difference']}"


if __name__ == "__main__":
    Program("docs.int8", __doc__, {"images": 96, "seeds": 3}, measure, lines).run()
