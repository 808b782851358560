"""VAE files as people hold them: diffusers' names old and new, prefixes, and what training left beside the weights."""

from __future__ import annotations

import re

import pytest
import torch
from gtr_pack.gtr_core.checkpoints import load_vae
from gtr_pack.gtr_core.checkpoints.checkpoint import checked_vae, read_checkpoint
from gtr_pack.gtr_core.checkpoints.convert import convert
from gtr_pack.gtr_core.errors import GtRError
from gtr_pack.gtr_core.models.vae import KLVAE, VAESpec
from gtr_tests.stand_ins import randomised
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]
SPECS = {
    "SD3": VAESpec(32, (1, 2, 4, 4), 2, 16, 16, quant=False),
    "SD": VAESpec(32, (1, 2, 4, 4), 2, 4, 4),
    "two levels": VAESpec(32, (1, 2), 1, 8, 8),
    "attention in levels": VAESpec(32, (1, 1, 2), 1, 4, 4, encoder_attention=(2,), decoder_attention=(1, 2)),
}
NEW = {".norm.": ".group_norm.", ".q.": ".to_q.", ".k.": ".to_k.", ".v.": ".to_v.", ".proj_out.": ".to_out.0."}
OLD = {".norm.": ".group_norm.", ".q.": ".query.", ".k.": ".key.", ".v.": ".value.", ".proj_out.": ".proj_attn."}


def diffusers(tensors: Tensors, levels: int, attention: dict[str, str], *, linear: bool = True) -> Tensors:
    """The tensors as diffusers saves them."""

    def up(match: re.Match) -> str:
        kind = {"block": "resnets", "attn": "attentions"}.get(match[2])
        if kind is None:
            return f"decoder.up_blocks.{levels - 1 - int(match[1])}.upsamplers.0."
        return f"decoder.up_blocks.{levels - 1 - int(match[1])}.{kind}.{match[3]}."

    found = {}
    for name, t in tensors.items():
        in_attention = "attn" in name
        name = re.sub(r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2.", name)
        name = re.sub(r"^encoder\.down\.(\d+)\.attn\.(\d+)\.", r"encoder.down_blocks.\1.attentions.\2.", name)
        name = re.sub(r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0.", name)
        name = re.sub(r"^decoder\.up\.(\d+)\.(upsample|block|attn)\.(?:(\d+)\.)?", up, name)
        for old, new in (("block_1", "resnets.0"), ("block_2", "resnets.1"), ("attn_1", "attentions.0")):
            name = name.replace(f".mid.{old}.", f".mid_block.{new}.")
        name = name.replace("nin_shortcut", "conv_shortcut").replace(".norm_out.", ".conv_norm_out.")
        if in_attention:
            for old, new in attention.items():
                name = name.replace(old, new)
            t = t[:, :, 0, 0].contiguous() if linear and t.dim() == 4 else t
        found[name] = t
    return found


@pytest.fixture(params=SPECS)
def vae(request) -> KLVAE:
    return randomised(KLVAE(SPECS[request.param]), 3)


@pytest.fixture(scope="module")
def plain() -> Tensors:
    return dict(randomised(KLVAE(SPECS["SD"]), 3).state_dict())


def behind(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: t for name, t in tensors.items()}


@pytest.mark.parametrize(
    "attention, linear", [(NEW, True), (OLD, True), (OLD, False)], ids=["new", "old", "old, convolutions"]
)
def test_diffusers_layout_is_the_same_vae(attention, linear, vae, tmp_path):
    tensors = diffusers(vae.state_dict(), len(vae.spec.multipliers), attention, linear=linear)
    assert "encoder.mid_block.attentions.0.group_norm.weight" in tensors
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(tensors, path)
    found = load_vae(path)
    assert found.spec == vae.spec
    assert all(torch.equal(found.state_dict()[name], t) for name, t in vae.state_dict().items())


def test_it_becomes_ldm_layout_when_converted(vae, tmp_path):
    torch.save(diffusers(vae.state_dict(), len(vae.spec.multipliers), NEW), tmp_path / "x.bin")
    convert(tmp_path / "x.bin", tmp_path / "x.safetensors")
    assert set(read_checkpoint(tmp_path / "x.safetensors").tensors) == set(vae.state_dict())


WRAPPED = {
    "first_stage_model": lambda t: {"state_dict": behind("first_stage_model.", t) | {"model.x": torch.zeros(3)}},
    "vae": lambda t: behind("vae.", t),
    "model": lambda t: {"model": t},
    "compiled": lambda t: behind("_orig_mod.", t),
    "losses": lambda t: {"state_dict": t | {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.bias": t_(3)}},
    "a discriminator": lambda t: {"state_dict": t | behind("discriminator.", {"main.0.weight": t_(4)})},
    "a pipeline in one file": lambda t: behind("first_stage_model.", t) | behind("cond_stage_model.", {"w": t_(2)}),
    "diffusers with a prefix": lambda t: behind("vae.", diffusers(t, 4, NEW)),
    "EMA copies": lambda t: (
        {name: value + 1 for name, value in t.items()}
        | {f"model_ema.{name.replace('.', '')}": value for name, value in t.items()}
        | {"model_ema.decay": torch.tensor(0.9), "loss.logvar": t_(1)}
    ),
    "both sets": lambda t: {"model": {name: value + 1 for name, value in t.items()}, "ema": t},
    "a VAE beside a model": lambda t: {
        "state_dict": behind("vae.", t)
        | {"model.class_emb.weight": t_(1), "model.diffloss.net.input_proj.weight": t_(1)}
    },
}


def t_(count: int) -> Tensor:
    return torch.zeros(count)


@pytest.mark.parametrize("case", WRAPPED)
def test_a_vae_is_found_in_what_surrounds_it(case, plain, tmp_path):
    torch.save(WRAPPED[case](plain), tmp_path / "x.ckpt")
    _, tensors = checked_vae(read_checkpoint(tmp_path / "x.ckpt", kind="vae"))
    assert set(tensors) == set(plain) and all(torch.equal(tensors[name], t) for name, t in plain.items())


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda t: t.pop("encoder.mid_block.attentions.0.to_q.weight"),
            "1 of the .* missing .*'encoder.mid.attn_1.q.w",
        ),
        (lambda t: t.update({"quantize.embedding.weight": t_(5)}), "do not belong .*'quantize.embedding.weight'"),
        (lambda t: t.update({"encoder.down_blocks.0.resnets.7.conv1.weight": t_(5)}), "one is number 7"),
        (lambda t: t.update({"decoder.up_blocks.999.resnets.0.conv1.weight": t_(5)}), "missing|do not belong|number"),
    ],
)
def test_a_vae_that_is_not_whole_is_refused(change, words, plain, tmp_path):
    tensors = diffusers(plain, 4, NEW)
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(GtRError, match=words):
        load_vae(tmp_path / "x.safetensors")
