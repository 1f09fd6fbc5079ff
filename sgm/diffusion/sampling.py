"""All samplers, by name."""

from __future__ import annotations

from sgm.diffusion.ancestral import (
    DPM2AncestralSampler,
    DPMPP2SAncestralSampler,
    DPMPPSDESampler,
    EulerAncestralSampler,
    LCMSampler,
)
from sgm.diffusion.bounded import Between as Between
from sgm.diffusion.bounded import BoundedSampler as BoundedSampler
from sgm.diffusion.bounded import one_end as one_end
from sgm.diffusion.multistep import (
    DPMPP2MSampler,
    DPMPP2MSDESampler,
    DPMPP3MSDESampler,
    LinearMultistepSampler,
    UniPCSampler,
)
from sgm.diffusion.sampler import Noise as Noise
from sgm.diffusion.sampler import Sampler as Sampler
from sgm.diffusion.sampler import to_d as to_d
from sgm.diffusion.single_step import DPM2Sampler, EulerEDMSampler, HeunEDMSampler, RestartSampler

# Name -> class; the request, the command line and the page list these.
SAMPLERS: dict[str, type[Sampler]] = {
    "euler_edm": EulerEDMSampler,
    "heun_edm": HeunEDMSampler,
    "dpm_2": DPM2Sampler,
    "restart": RestartSampler,
    "euler_ancestral": EulerAncestralSampler,
    "dpm_2_ancestral": DPM2AncestralSampler,
    "dpmpp_2s_ancestral": DPMPP2SAncestralSampler,
    "dpmpp_sde": DPMPPSDESampler,
    "dpmpp_2m": DPMPP2MSampler,
    "dpmpp_2m_sde": DPMPP2MSDESampler,
    "dpmpp_3m_sde": DPMPP3MSDESampler,
    "unipc": UniPCSampler,
    "linear_multistep": LinearMultistepSampler,
    "lcm": LCMSampler,
    "bounded": BoundedSampler,
}
# What k-diffusion calls them.
ALIASES = {"euler": "euler_edm", "heun": "heun_edm", "lms": "linear_multistep"}
