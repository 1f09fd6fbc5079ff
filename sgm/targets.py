"""Official `target:` names -> the classes of this package.

The table doubles as the allow-list: a YAML can build these classes and nothing else.
"""

_AUTOENCODER = "sgm.autoencoder.autoencoder."
_CODERS = "sgm.autoencoder.coders."
_DISCRETIZATION = "sgm.diffusion.discretization."
_DENOISER = "sgm.diffusion.denoiser."
_GUIDANCE = "sgm.diffusion.guidance."
_SAMPLING = "sgm.diffusion.sampling."
_LOSS = "sgm.diffusion.loss."
_TRAINING = "sgm.training."

TARGETS: dict[str, str] = {
    "torch.nn.Identity": "torch.nn.Identity",
    "sgm.models.diffusion.DiffusionEngine": "sgm.engine.DiffusionEngine",
    "sgm.models.autoencoder.AutoencodingEngine": _AUTOENCODER + "AutoencodingEngine",
    "sgm.models.autoencoder.AutoencoderKL": _AUTOENCODER + "AutoencoderKL",
    "sgm.models.autoencoder.AutoencoderKLModeOnly": _AUTOENCODER + "AutoencoderKLModeOnly",
    "sgm.modules.autoencoding.regularizers.DiagonalGaussianRegularizer": _AUTOENCODER + "DiagonalGaussianRegularizer",
    "sgm.modules.autoencoding.temporal_ae.VideoDecoder": _CODERS + "VideoDecoder",
    "sgm.modules.diffusionmodules.model.Encoder": _CODERS + "Encoder",
    "sgm.modules.diffusionmodules.model.Decoder": _CODERS + "Decoder",
    "sgm.modules.diffusionmodules.video_model.VideoUNet": "sgm.unet.video_unet.VideoUNet",
    "sgm.modules.diffusionmodules.video_model.SpatialUNetModelWithTime": "sgm.unet.view_unet.SpatialUNetModelWithTime",
    "sgm.modules.GeneralConditioner": "sgm.conditioning.conditioner.GeneralConditioner",
    "sgm.modules.encoders.modules.GeneralConditioner": "sgm.conditioning.conditioner.GeneralConditioner",
    "sgm.modules.encoders.modules.ConcatTimestepEmbedderND": "sgm.conditioning.scalar.ConcatTimestepEmbedderND",
    "sgm.modules.encoders.modules.FrozenOpenCLIPImageEmbedder": "sgm.conditioning.clip.FrozenOpenCLIPImageEmbedder",
    "sgm.modules.encoders.modules.FrozenOpenCLIPImagePredictionEmbedder": (
        "sgm.conditioning.clip.FrozenOpenCLIPImagePredictionEmbedder"
    ),
    "sgm.modules.encoders.modules.VideoPredictionEmbedderWithEncoder": (
        "sgm.conditioning.latent.VideoPredictionEmbedderWithEncoder"
    ),
    "sgm.conditioning.camera.CameraRayEmbedder": "sgm.conditioning.camera.CameraRayEmbedder",
    "sgm.modules.diffusionmodules.denoiser.Denoiser": _DENOISER + "Denoiser",
    **{
        f"sgm.modules.diffusionmodules.denoiser_scaling.{name}": _DENOISER + name
        for name in ("EDMScaling", "EpsScaling", "VScaling", "VScalingWithEDMcNoise")
    },
    **{
        f"sgm.modules.diffusionmodules.discretizer.{name}": _DISCRETIZATION + name
        for name in ("EDMDiscretization", "LegacyDDPMDiscretization")
    },
    **{
        f"sgm.modules.diffusionmodules.guiders.{name}": _GUIDANCE + name
        for name in (
            "IdentityGuider",
            "VanillaCFG",
            "LinearPredictionGuider",
            "TrianglePredictionGuider",
            "TrapezoidPredictionGuider",
            "SpatiotemporalPredictionGuider",
        )
    },
    **{_GUIDANCE + name: _GUIDANCE + name for name in ("IntervalGuider", "APGGuider")},
    **{
        f"sgm.modules.diffusionmodules.sampling.{name}": _SAMPLING + name
        for name in (
            "EulerEDMSampler",
            "HeunEDMSampler",
            "EulerAncestralSampler",
            "DPMPP2SAncestralSampler",
            "DPMPP2MSampler",
            "LinearMultistepSampler",
        )
    },
    **{
        _SAMPLING + name: _SAMPLING + name
        for name in (
            "LCMSampler",
            "DPM2Sampler",
            "DPM2AncestralSampler",
            "DPMPPSDESampler",
            "DPMPP2MSDESampler",
            "DPMPP3MSDESampler",
            "UniPCSampler",
            "RestartSampler",
        )
    },
    **{
        _DISCRETIZATION + name: _DISCRETIZATION + name
        for name in ("AlignYourStepsDiscretization", "ConsistencyDiscretization", "CustomDiscretization")
    },
    "sgm.modules.diffusionmodules.loss.StandardDiffusionLoss": _LOSS + "StandardDiffusionLoss",
    "sgm.modules.diffusionmodules.loss_weighting.EDMWeighting": _LOSS + "EDMWeighting",
    "sgm.modules.diffusionmodules.loss_weighting.VWeighting": _LOSS + "VWeighting",
    "sgm.modules.diffusionmodules.loss_weighting.EpsWeighting": _LOSS + "EpsWeighting",
    "sgm.modules.diffusionmodules.loss_weighting.UnitWeighting": _LOSS + "UnitWeighting",
    "sgm.modules.diffusionmodules.sigma_sampling.EDMSampling": _LOSS + "EDMSampling",
    "sgm.modules.diffusionmodules.sigma_sampling.DiscreteSampling": _LOSS + "DiscreteSampling",
    "sgm.modules.diffusionmodules.sigma_sampling.ZeroSampler": _LOSS + "ZeroSampler",
}
