"""Which weights of a file are taken: behind any wrapper, prefix or way of averaging, and which of them is said."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from gtr_pack.gtr_core.checkpoints import load_model
from gtr_pack.gtr_core.checkpoints.checkpoint import Checkpoint, read_checkpoint
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.checkpoints.metadata import spec_metadata
from gtr_pack.gtr_core.errors import GtRError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = dict[str, Tensor]


def behind(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {prefix + name: t for name, t in tensors.items()}


def without_dots(prefix: str, tensors: Tensors) -> Tensors:
    """As LDM's LitEma names its copies, with its own two numbers."""
    copies = {f"{prefix}{name.replace('.', '')}": t for name, t in tensors.items()}
    start = prefix[: prefix.index(".") + 1]
    return copies | {f"{start}decay": torch.tensor(0.9999), f"{start}num_updates": torch.tensor(7)}


def module(tensors: Tensors) -> nn.Module:
    """A module with these parameters."""
    made = nn.Module()
    for name, t in tensors.items():
        inner = made
        *path, last = name.split(".")
        for part in path:
            if part not in inner._modules:
                inner.add_module(part, nn.Module())
            inner = inner._modules[part]
        inner.register_parameter(last, nn.Parameter(t.clone()))
    return made


class Average:
    """A trainer's own object, pickled whole."""

    def __init__(self, tensors: Tensors) -> None:
        self.decay, self.shadow = 0.9999, tensors


def averaged(ema: Tensors) -> Tensors:
    """What torch's AveragedModel saves."""
    return AveragedModel(module(ema)).state_dict()


def adam(raw: Tensors) -> dict:
    """An optimizer's state under the names of parameters: moments look like averages."""
    return {"state": {name: {"exp_avg": t, "exp_avg_sq": t, "step": torch.tensor(5.0)} for name, t in raw.items()}}


# What a trainer saves, from the raw and the averaged weights, and where the averaged ones then are.
AVERAGED: dict[str, tuple[Callable[[Tensors, Tensors], object], str]] = {
    "DiT": (lambda raw, ema: {"model": raw, "ema": ema, "opt": adam(raw), "args": argparse.Namespace(lr=1)}, "ema"),
    "order does not matter": (lambda raw, ema: {"ema": ema, "model": raw}, "ema"),
    "ema alone": (lambda raw, ema: {"ema": ema}, "ema"),
    "raw taken out": (lambda raw, ema: {"model": None, "model_ema": ema}, "model_ema"),
    "raw emptied": (lambda raw, ema: {"model": {}, "model_ema": ema}, "model_ema"),
    "timm": (lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema, "epoch": 5}, "state_dict_ema"),
    "BasicSR": (lambda raw, ema: {"params": raw, "params_ema": ema}, "params_ema"),
    "nested": (lambda raw, ema: {"state": {"nets": {"raw": raw, "ema": ema}}}, "state.nets.ema"),
    "nested twice": (lambda raw, ema: {"ema": {"model": ema}, "model": {"model": raw}}, "ema.model"),
    "compiled, DDP": (
        lambda raw, ema: {"model": behind("module._orig_mod.", raw), "model_ema": behind("_orig_mod.module.", ema)},
        "model_ema._orig_mod.module",
    ),
    "ema-pytorch": (
        lambda raw, ema: {
            "model": raw,
            "ema": behind("online_model.", raw) | behind("ema_model.", ema) | {"step": torch.tensor(9)},
        },
        "ema.ema_model",
    ),
    "ema-pytorch, flat": (lambda raw, ema: behind("online_model.", raw) | behind("ema_model.", ema), "ema_model"),
    "LitEma": (
        lambda raw, ema: {"state_dict": behind("model.", raw) | without_dots("model_ema.", ema)},
        "state_dict.model_ema",
    ),
    "LitEma in LDM": (
        lambda raw, ema: {
            "state_dict": behind("model.diffusion_model.", raw) | without_dots("model_ema.diffusion_model", ema)
        },
        "state_dict.model_ema.diffusion_model",
    ),
    "LitEma beside plain names": (lambda raw, ema: raw | without_dots("model_ema.", ema), "model_ema"),
    "AveragedModel": (lambda raw, ema: {"model": raw, "swa_model": averaged(ema)}, "swa_model.module"),
    "AveragedModel alone": (lambda raw, ema: averaged(ema), "module"),
    "AveragedModel compiled": (lambda raw, ema: behind("_orig_mod.", averaged(ema)), "_orig_mod.module"),
    "AveragedModel of DDP": (
        lambda raw, ema: behind("module.module.", ema) | {"module.n_averaged": torch.tensor(4)},
        "module.module",
    ),
    "torch-ema": (
        lambda raw, ema: {
            "model": raw,
            "ema": {"decay": 0.9, "shadow_params": [ema[n] for n in raw], "collected_params": [*raw.values()]},
        },
        "ema.shadow_params",
    ),
    "Lightning's WeightAveraging": (
        lambda raw, ema: {
            "state_dict": behind("model.", ema),
            "current_model_state": behind("model.", raw),
            "averaging_state": {"n_averaged": torch.tensor(4)},
        },
        "state_dict.model",
    ),
    "a callback's average": (
        lambda raw, ema: {
            "state_dict": behind("net.", raw),
            "callbacks": {"EMACallback{'decay': 0.9999}": {"ema_state_dict": behind("net.", ema)}},
        },
        "callbacks.EMACallback{'decay': 0.9999}.ema_state_dict.net",
    ),
    "several decays": (lambda raw, ema: {"model": raw, "ema": {"0.99": raw, "0.9999": ema}}, "ema.0.9999"),
    "decays in names": (lambda raw, ema: {"ema_0.9999": ema, "ema_0.999": raw, "model": raw}, "ema_0.9999"),
    "decays without a point": (lambda raw, ema: {"ema_9999": ema, "ema_999": raw}, "ema_9999"),
    "student and teacher": (lambda raw, ema: {"student": raw, "teacher": ema}, "teacher"),
    "an object of the trainer": (lambda raw, ema: {"model": raw, "ema": Average(ema)}, "ema.shadow"),
    "whole modules": (lambda raw, ema: {"model": module(raw), "ema": module(ema)}, "ema"),
    "an optimizer with names": (lambda raw, ema: {"model": raw, "ema": ema, "optimizer": adam(raw)}, "ema"),
    "an optimizer of tables": (
        lambda raw, ema: {"model": raw, "ema": ema, "optimizer": {"exp_avg": raw, "exp_avg_sq": ema}},
        "ema",
    ),
    "a frozen VAE inside": (
        lambda raw, ema: {
            "state_dict": behind("model.", raw)
            | behind("ema.", ema)
            | {"vae.encoder.conv_in.weight": torch.zeros(1), "vae.decoder.conv_in.weight": torch.zeros(1)}
        },
        "state_dict.ema",
    ),
    "one set under two names": (lambda raw, ema: {"model": ema, "model_ema": ema}, "model_ema"),
}
# One set of weights: how it is stored, the entry, and what can be said of it.
SINGLE: dict[str, tuple[Callable[[Tensors], object], str, str]] = {
    "flat": (lambda w: w, "", "unknown"),
    "state_dict": (lambda w: {"state_dict": w, "epoch": 1}, "state_dict", "unknown"),
    "model_state_dict": (lambda w: {"model_state_dict": w}, "model_state_dict", "model"),
    "DeepSpeed": (lambda w: {"module": w, "ds_version": "0.15"}, "module", "model"),
    "Lightning": (lambda w: {"state_dict": behind("model.", w), "callbacks": {}}, "state_dict.model", "unknown"),
    "generator": (lambda w: {"generator": behind("generator.module.", w)}, "generator.generator.module", "model"),
    "two names of one module": (
        lambda w: {"state_dict": behind("model.", w) | behind("net.", w)},
        "state_dict.model",
        "unknown",
    ),
    "a whole module": (module, "", "unknown"),
    "an ordered dictionary": (lambda w: {"model": OrderedDict(w)}, "model", "model"),
    "an optimizer beside it": (lambda w: w | {"opt": {"a": torch.zeros(3)}, "step": 5}, "", "unknown"),
    "moments in lists": (
        lambda w: {"model": w, "optimizer": {"exp_avg": [t + 1 for t in w.values()]}},
        "model",
        "model",
    ),
}


@pytest.fixture(scope="module")
def raw(weights) -> Tensors:
    return {name: t + 1 for name, t in weights.items()}


def assert_same(checkpoint: Checkpoint, weights: Tensors) -> None:
    assert set(checkpoint.tensors) == set(weights)
    assert all(torch.equal(checkpoint.tensors[name], t) for name, t in weights.items())


@pytest.mark.parametrize("case", AVERAGED)
def test_the_averaged_weights_are_taken_and_their_entry_is_said(case, weights, raw, spec, tmp_path):
    make, entry = AVERAGED[case]
    torch.save(make(raw, weights), tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert (checkpoint.weights, checkpoint.entry, checkpoint.warning(spec)) == ("ema", entry, None)
    assert_same(checkpoint, weights)
    assert_same(read_checkpoint(tmp_path / "x.pth", weights="ema"), weights)
    assert_same(read_checkpoint(tmp_path / "x.pth", weights=entry), weights)


@pytest.mark.parametrize("case", [name for name in AVERAGED if "alone" not in name and "taken" not in name])
def test_the_raw_weights_are_taken_on_request(case, weights, raw, spec, tmp_path):
    content = AVERAGED[case][0](raw, weights)
    torch.save(content, tmp_path / "x.pth")
    try:
        checkpoint = read_checkpoint(tmp_path / "x.pth", weights="model")
    except GtRError as error:
        assert "it has no model weights, only ema" in str(error)
        return
    assert checkpoint.weights == "model" and "holds non-EMA" in checkpoint.warning(spec)
    assert_same(checkpoint, weights if case == "one set under two names" else raw)


@pytest.mark.parametrize("case", SINGLE)
def test_one_set_of_weights_is_found_behind_its_wrapper(case, weights, tmp_path):
    make, entry, kind = SINGLE[case]
    torch.save(make(weights), tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert (checkpoint.weights, checkpoint.entry) == (kind, entry)
    assert_same(checkpoint, weights)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module.", "model.", "net._orig_mod.", "a.b.c.d."],
)
def test_prefixes_are_dropped_from_a_flat_file(prefix, weights, tmp_path):
    save_file(behind(prefix, weights), tmp_path / "x.safetensors")
    checkpoint = read_checkpoint(tmp_path / "x.safetensors")
    assert_same(checkpoint, weights)
    assert checkpoint.entry == prefix.rstrip(".")


def test_flat_safetensors_with_both_sets(weights, raw, tmp_path):
    save_file(behind("model.", raw) | behind("ema.", weights), tmp_path / "x.safetensors")
    assert_same(read_checkpoint(tmp_path / "x.safetensors"), weights)
    assert_same(load_tensors(tmp_path / "x.safetensors", "model"), raw)


def load_tensors(path: Path, which: str) -> Checkpoint:
    return read_checkpoint(path, weights=which, kind="model")


@pytest.mark.parametrize(
    "make, wanted, words",
    [
        (
            lambda raw, ema: {"model": raw, "best_model": ema},
            None,
            "2 sets of raw weights.* --weights and one of 'model', 'best_model'$",
        ),
        (
            lambda raw, ema: {"model": raw, "ema1": ema, "ema2": raw},
            None,
            "2 sets of averaged weights.* 'ema1', 'ema2'",
        ),
        (lambda raw, ema: {"model": raw, "ema": {"shadow_params": [*ema.values()][1:]}}, None, "cannot be matched"),
        (lambda raw, ema: {"model": raw, "ema": Average([*ema.values()][1:])}, None, "cannot be matched"),
        (
            lambda raw, ema: {"model": raw, "ema": {f"{k}": t for k, t in enumerate(ema.values())}},
            None,
            "the averaged weights in 'ema' .100 tensors. cannot be matched with the 100 names",
        ),
        (lambda raw, ema: {"model": raw}, "ema", "it has no ema weights, only model"),
        (lambda raw, ema: {"ema": ema}, "model", "it has no model weights, only ema"),
        (lambda raw, ema: ema, "model", "does not say whether its weights are averaged, so the raw ones cannot"),
        (lambda raw, ema: ema, "ema", "does not say whether its weights are averaged, so the averaged ones cannot"),
        (lambda raw, ema: {"model": raw, "ema": ema}, "shadow", "weights 'shadow': expected ema, model$"),
        (
            lambda raw, ema: {"model": raw, "model_ema": ema},
            "model_em",
            "weights 'model_em': expected ema, model, model_ema$",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(make, wanted, words, weights, raw, refusal, tmp_path):
    """Never the raw weights unasked: where averaged ones may be meant, the line says what to ask for."""
    torch.save(make(raw, weights), tmp_path / "x.pth")
    assert re.search(words, refusal(tmp_path / "x.pth", weights=wanted))


def test_a_converted_file_keeps_its_word(weights, raw, spec, tmp_path):
    save_file(weights, tmp_path / "ema.safetensors", spec_metadata(spec, "ema"))
    with pytest.raises(GtRError, match="ema.safetensors: it has no model weights, only ema: ask for those"):
        convert(tmp_path / "ema.safetensors", tmp_path / "out.safetensors", weights="model")
    save_file(weights, tmp_path / "odd.safetensors", spec_metadata(spec, "a\nb"))
    assert read_checkpoint(tmp_path / "odd.safetensors").weights == "unknown"


def test_the_chosen_weights_make_the_model(weights, raw, spec, tmp_path):
    torch.save({"model": raw, "ema": weights}, tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "x.safetensors", heads=4, weights="model")
    assert torch.equal(load_model(tmp_path / "x.safetensors").mask_token, raw["mask_token"])


def test_lightgen_takes_the_raw_weights(golden_weights, tmp_path):
    weights = golden_weights("lightgen_tiny_fp16")
    averages = {name: t + 1 for name, t in weights.items()}
    for content in ({"model": weights, "model_ema": averages}, {"state_dict": weights, "state_dict_ema": averages}):
        torch.save(content, tmp_path / "x.pth")
        assert_same(read_checkpoint(tmp_path / "x.pth"), weights)
        assert_same(read_checkpoint(tmp_path / "x.pth", weights="ema"), averages)


def test_only_what_is_taken_is_loaded(weights, tmp_path, monkeypatch):
    """An optimizer's state costs nothing: its tensors are never touched."""
    from gtr_pack.gtr_core.checkpoints.stored import StoredView

    loaded, load = [], StoredView.load
    monkeypatch.setattr(StoredView, "load", lambda self: loaded.append(self) or load(self))
    torch.save({"model": weights, "ema": weights, "opt": adam(weights)}, tmp_path / "x.pth")
    read_checkpoint(tmp_path / "x.pth")
    assert len(loaded) == len(weights)


def test_a_name_that_is_not_printable_is_shown_escaped(weights, tmp_path):
    torch.save({"a\x1b[31m\n": {"ema": weights}}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth").entry == "a\\x1b[31m\\n.ema"
