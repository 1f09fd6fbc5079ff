"""A second witness: diffusers and transformers compute what we do from the same made-up weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from sgm.conditioning.scalar import ConcatTimestepEmbedderND
from sgm.config import instantiate_from_config, load_config
from sgm.errors import UserError
from sgm.layers.embeddings import timestep_embedding
from sgm.merging import merged
from sgm.versions import bundle
from tests.diffusers_weights import autoencoder, image_tower, part, unet
from tests.small_model import made_up as made_up_engine
from tests.small_model import write_config
from tests.test_lora import evaluated, found, inputs
from tests.test_parity import OWN, error, golden_weights

TINY = bundle() / "configs" / "inference" / "svd_tiny.yaml"
CONFIGS = {"svd_small": OWN / "svd_small.yaml", "svd_tiny": TINY}
FRAMES = 3


@pytest.fixture(params=CONFIGS, scope="module")
def params(request: pytest.FixtureRequest) -> dict:
    return load_config(CONFIGS[request.param])["model"]["params"]


def made_up(config: dict) -> tuple[Any, dict[str, Tensor]]:
    """A module of a YAML, of the class that it names, with made-up weights, and these."""
    module = instantiate_from_config(config).eval().requires_grad_(False)
    golden_weights(OWN).fill(module)
    return module, module.state_dict()


def embedder(params: dict, key: str) -> dict:
    return next(e for e in params["conditioner_config"]["params"]["emb_models"] if e["input_key"] == key)["params"]


@torch.inference_mode()
def test_network(params: dict) -> None:
    config = params["network_config"]
    ours, state = made_up(config)
    theirs = unet(config["params"], state, FRAMES)
    generator = torch.Generator().manual_seed(1)
    clips = 2
    x = torch.randn(clips, FRAMES, config["params"]["in_channels"], 16, 24, generator=generator)
    context = torch.randn(clips, 1, config["params"]["context_dim"], generator=generator)
    ids = torch.tensor([[6.0, 127.0, 0.02], [23.0, 20.0, 0.3]])  # fps - 1, motion bucket, augmentation
    vector = ConcatTimestepEmbedderND(256)(ids)
    for c_noise in (1.6, -1.5):
        want = theirs(x, torch.tensor(c_noise), context, ids).sample.flatten(0, 1)
        got = ours(
            x.flatten(0, 1),
            torch.full((clips * FRAMES,), c_noise),
            context=context.repeat_interleave(FRAMES, 0),
            y=vector.repeat_interleave(FRAMES, 0),
            num_video_frames=FRAMES,
        )
        assert error(got, want) <= 1e-4
        # The witness hears every input: without the ids it says something else.
        deaf = theirs(x, torch.tensor(c_noise), context, torch.zeros_like(ids)).sample.flatten(0, 1)
        assert error(got, deaf) > 1e-2


def test_a_lora_of_peft_computes_what_peft_computes(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the witness for LoRAs: python -m pip install -e '.[test]'")
    config = write_config(tmp_path / "small.yaml")
    engine = made_up_engine(config)
    plain = unet(
        load_config(config)["model"]["params"]["network_config"]["params"],
        part(engine.state_dict(), "model.diffusion_model"),
        FRAMES,
    )
    for name, module in plain.named_modules():
        if name.endswith(("norm1", "norm2")) and isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e-5  # as in the original; diffusers has 1e-6 in some blocks
    # Linear layers, convolutions over pixels and over frames, of the spatial and of the temporal part.
    targets = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "net.0.proj", "conv1", "conv_shortcut"]
    targets += ["downsamplers.0.conv"]
    torch.manual_seed(3)
    theirs = peft.get_peft_model(
        plain, peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False)
    ).eval()
    theirs.save_pretrained(tmp_path / "style")
    x, context, ids = inputs(engine.network)
    for strength in (1.0, 0.5):
        for module in theirs.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.set_scale("default", strength)
        ours = merged(engine.network, found(tmp_path / "style", strength), "svd")
        with torch.inference_mode():
            want = theirs(x, torch.tensor(1.6), context, ids).sample.flatten(0, 1)
        for fast in (True, False):
            assert error(evaluated(ours, fast), want) <= 1e-5
        assert error(evaluated(engine.network), want) > 1e-2


@torch.inference_mode()
def test_autoencoder(params: dict) -> None:
    encoder, encoder_state = made_up(embedder(params, "cond_frames")["encoder_config"])
    decoder_config = params["first_stage_config"]["params"]["decoder_config"]
    decoder, decoder_state = made_up(decoder_config)
    encoder_state = {key: value for key, value in encoder_state.items() if key.startswith(("encoder.", "quant_conv."))}
    theirs = autoencoder(decoder_config["params"], encoder_state, decoder_state)
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(2, 3, 64, 96, generator=generator) * 2 - 1
    assert error(encoder.moments(pictures), theirs.encode(pictures, return_dict=False)[0].parameters) <= 1e-4
    z = torch.randn(2 * FRAMES, decoder_config["params"]["z_channels"], 8, 12, generator=generator)
    want = theirs.decode(z, num_frames=FRAMES, return_dict=False)[0]
    assert error(decoder(z, FRAMES), want) <= 1e-4
    assert error(decoder(z, 1), want) > 1e-2  # frames do hear each other


@torch.inference_mode()
def test_image_tower() -> None:
    params = load_config(TINY)["model"]["params"]
    config = embedder(params, "cond_frames_without_noise")["open_clip_embedding_config"]
    ours, state = made_up(config)
    theirs = image_tower(config["params"]["arch"], part(state, "model.visual"))
    pictures = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert error(ours(pictures), theirs(ours.preprocess(pictures)).image_embeds) <= 1e-4


def test_time_ids() -> None:
    from diffusers.models.embeddings import Timesteps

    values = torch.tensor([0.0, 0.02, 6.0, 127.0, 511.0])
    assert error(timestep_embedding(values, 256), Timesteps(256, True, 0)(values)) <= 1e-6


def test_a_key_that_no_rule_knows_is_an_error(params: dict) -> None:
    config = params["network_config"]
    _, state = made_up(config)
    with pytest.raises(UserError, match=r"no place for surplus\.weight"):
        unet(config["params"], {**state, "surplus.weight": torch.zeros(1)}, FRAMES)
