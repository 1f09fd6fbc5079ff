"""svd_tiny on diffusers and transformers: `_diffusers_svd_tiny.py PICTURE OUT.mp4 WIDTH HEIGHT DTYPE …`.

Last, `--channels-last`, if their modules are to be laid out so.

Their UNet, autoencoder, image tower and Euler scheduler do what StableVideoDiffusionPipeline does. The pipeline class
itself cannot take the camera's channels. Of ours it uses what diffusers does not have: the picture's way into the batch
(crop, camera path, the seeded noise), the ray map's features, the tower's resizing, the picture's colours, and the
file's writer. None of it loads our networks or open_clip.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sgm import VideoRequest, open_picture, write_video
from sgm.conditioning.camera import CameraRayEmbedder
from sgm.conditioning.clip import MEAN, STD, resize
from sgm.config import load_config
from sgm.families.image import ready
from sgm.versions import VERSIONS
from sgm.weights import to_channels_last
from tests.diffusers_weights import autoencoder, image_tower, part, unet


@torch.inference_mode()
def main(picture: str, out: str, width: int, height: int, dtype: torch.dtype, channels_last: bool) -> None:
    version, request = VERSIONS["svd_tiny"], VideoRequest(width=width, height=height)
    assert version.checkpoint_path is not None
    frames = version.frames
    params = load_config(version.config_path)["model"]["params"]
    embedders = {e["input_key"]: e for e in params["conditioner_config"]["params"]["emb_models"]}
    keys = list(embedders)
    decoder_config = params["first_stage_config"]["params"]["decoder_config"]["params"]
    state = load_file(version.checkpoint_path)
    network = unet(params["network_config"]["params"], part(state, "model.diffusion_model"), frames)
    vae = autoencoder(
        decoder_config,
        part(state, f"conditioner.embedders.{keys.index('cond_frames')}.encoder"),
        part(state, "first_stage_model.decoder"),
    )
    tower_at = f"conditioner.embedders.{keys.index('cond_frames_without_noise')}.open_clip.model.visual"
    arch = embedders["cond_frames_without_noise"]["params"]["open_clip_embedding_config"]["params"]["arch"]
    tower = image_tower(arch, part(state, tower_at))
    models: list[nn.Module] = [network, vae, tower]
    for model in models:
        model.to(dtype)
    if channels_last:
        for model in models[:2]:
            to_channels_last(model)

    generator = torch.Generator().manual_seed(request.seed)
    factor = 2 ** (len(decoder_config["ch_mult"]) - 1)
    prepared = request.family.prepare(open_picture(picture), request)
    batch = {name: ready(value) for name, value in request.family.batch(prepared, factor, generator).items()}

    small = resize(batch["cond_frames_without_noise"], (arch["vision_cfg"]["image_size"],) * 2)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    context = tower((((small + 1) / 2 - mean) / std).to(dtype)).image_embeds[:1, None]  # (1, 1, d)
    picture_latents = vae.encode(batch["cond_frames"].to(dtype), return_dict=False)[0].mode().float()
    rays = CameraRayEmbedder(embedders["camera"]["params"]["frequencies"])(batch["camera"])
    concat = torch.cat([picture_latents.expand(frames, -1, -1, -1), rays], dim=1)[None]  # (1, t, c, h, w)
    ids = torch.stack([batch[key][0] for key in ("fps_id", "motion_bucket_id", "cond_aug")])[None]

    sigmas = params["sampler_config"]["params"]["discretization_config"]["params"]
    scheduler = EulerDiscreteScheduler(
        sigma_min=0.002,
        sigma_max=sigmas["sigma_max"],
        use_karras_sigmas=True,
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
    )
    scheduler.set_timesteps(version.steps)
    shape = (1, frames, decoder_config["z_channels"], height // factor, width // factor)
    latents = torch.randn(shape, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        model_input = torch.cat([scheduler.scale_model_input(latents, t), concat], dim=2)
        prediction = network(
            model_input.to(dtype), t, encoder_hidden_states=context, added_time_ids=ids, return_dict=False
        )
        latents = scheduler.step(prediction[0].float(), t, latents, return_dict=False)[0]

    z = (latents[0] / params["scale_factor"]).to(dtype)
    video = vae.decode(z, num_frames=frames, return_dict=False)[0].float()
    video = ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    write_video(Path(out), request.family.finish(video, prepared), version.fps)


if __name__ == "__main__":
    picture, out, width, height, dtype = sys.argv[1:6]
    main(picture, out, int(width), int(height), getattr(torch, dtype), "--channels-last" in sys.argv)
