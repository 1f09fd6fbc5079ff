"""OpenCLIP's image tower: a Vision Transformer whose class token is projected to the embedding.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv:2010.11929); Radford et al., CLIP (arXiv:2103.00020).

open_clip brings the architectures by name. Its own module is not used: importing that takes longer than the embedding.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sgm.errors import UserError

_VISION = {"image_size", "layers", "width", "head_width", "patch_size", "mlp_ratio"}


def read_architecture(arch: str | Mapping[str, Any]) -> dict[str, Any]:
    """An open_clip architecture by name, or as a mapping: embed_dim, vision_cfg, text_cfg, perhaps quick_gelu.

    Raises UserError for a name that open_clip does not know and for towers that are no plain Vision Transformer.
    """
    config = _named(arch) if isinstance(arch, str) else dict(arch)
    vision = config["vision_cfg"]
    if other := sorted(set(vision) - _VISION) or ([] if isinstance(vision.get("layers", 12), int) else ["layers"]):
        raise UserError(
            f"This image tower needs {', '.join(other)} of open_clip's vision_cfg; plain Vision Transformers"
            f" ({', '.join(sorted(_VISION))}) are known here, such as ViT-H-14."
        )
    return config


def _named(arch: str) -> dict[str, Any]:
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise UserError(f"arch {arch!r} is read from open_clip, which is missing: pip install open-clip-torch.")
    path = Path(package.origin).with_name("model_configs") / f"{arch}.json"
    if not path.is_file():
        raise UserError(f"arch {arch!r} is not an open_clip architecture; see open_clip.list_models().")
    return json.loads(path.read_text(encoding="utf-8"))


def _drawn(std: float, *shape: int) -> nn.Parameter:
    # Uniform, since normal values on the meta device make torch import its compiler, which takes seconds.
    return nn.Parameter(nn.init.uniform_(torch.empty(shape), -std * 3**0.5, std * 3**0.5))


class QuickGELU(nn.Module):
    """The sigmoid approximation of GELU (Hendrycks & Gimpel, arXiv:1606.08415) that OpenAI's own towers use."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class SelfAttention(nn.Module):
    """Multi-head self-attention: (n, tokens, width). Parameters are named as `nn.MultiheadAttention`'s."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (n, heads, tokens, d)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ResidualAttentionBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each with a layer norm before it, residual: (n, tokens, width)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, activation: type[nn.Module]) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, hidden), gelu=activation(), c_proj=nn.Linear(hidden, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """Pictures (n, 3, image_size, image_size), normalised as CLIP's -> embeddings (n, embed_dim)."""

    def __init__(
        self,
        embed_dim: int,
        image_size: int = 224,
        layers: int = 12,
        width: int = 768,
        head_width: int = 64,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        activation: type[nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.image_size = (image_size, image_size)
        scale, tokens = width**-0.5, (image_size // patch_size) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = _drawn(scale, width)
        self.positional_embedding = _drawn(scale, tokens, width)
        self.ln_pre = nn.LayerNorm(width)
        blocks = (ResidualAttentionBlock(width, width // head_width, mlp_ratio, activation) for _ in range(layers))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})
        self.ln_post = nn.LayerNorm(width)
        self.proj = _drawn(scale, width, embed_dim)

    def forward(self, x: Tensor, check: Callable[[], None] | None = None) -> Tensor:
        """check: called before each block."""
        patches = rearrange(self.conv1(x), "n c h w -> n (h w) c")
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), patches], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer["resblocks"]:  # pyright: ignore[reportGeneralTypeIssues]
            if check is not None:
                check()
            x = block(x)
        return self.ln_post(x[:, 0]) @ self.proj


class ImageTower(nn.Module):
    """The parts of an open_clip model that official checkpoints contain: `visual`, and rests of the text tower.

    The text tower's parameters are not used.
    """

    def __init__(self, arch: Mapping[str, Any]) -> None:
        super().__init__()
        width, text = arch["embed_dim"], arch["text_cfg"]
        activation = QuickGELU if arch.get("quick_gelu") else nn.GELU
        self.visual = VisionTransformer(width, **arch["vision_cfg"], activation=activation)
        self.token_embedding = nn.Embedding.from_pretrained(torch.zeros(text["vocab_size"], text["width"]))
        self.positional_embedding = nn.Parameter(torch.zeros(text["context_length"], text["width"]))
        self.ln_final = nn.LayerNorm(text["width"])
        self.text_projection = nn.Parameter(torch.zeros(text["width"], width))
        self.logit_scale = nn.Parameter(torch.zeros([]))
