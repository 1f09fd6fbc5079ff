"""The image tower against open_clip's own, on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sgm.conditioning.clip import FrozenOpenCLIPImageEmbedder
from sgm.conditioning.vision import ImageTower, read_architecture
from sgm.errors import UserError

TEXT = {"context_length": 4, "vocab_size": 8, "width": 16, "heads": 2, "layers": 1}
WIDE = {"embed_dim": 24, "vision_cfg": {"image_size": 28, "layers": 2, "width": 48, "head_width": 16, "patch_size": 7}}
LONG = {"embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "mlp_ratio": 2.5}}


def theirs(arch: dict[str, Any]) -> Any:
    open_clip = pytest.importorskip("open_clip")
    model = open_clip.CLIP(**arch).eval()
    del model.transformer
    model.register_buffer("attn_mask", None)
    return model


@pytest.mark.parametrize("arch", [{**WIDE, "text_cfg": TEXT}, {**LONG, "text_cfg": TEXT, "quick_gelu": True}])
def test_our_tower_embeds_as_open_clip_s(arch: dict[str, Any]) -> None:
    torch.manual_seed(0)
    reference, tower = theirs(arch), ImageTower(arch).eval()
    tower.load_state_dict(reference.state_dict())  # strict: the same names
    size = arch["vision_cfg"]["image_size"]
    picture = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(tower.visual(picture), reference.visual(picture), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ViT-H-14", "ViT-L-14-quickgelu", "ViT-bigG-14", "ViT-B-32"])
def test_a_named_architecture_has_open_clip_s_tensors(name: str) -> None:
    arch = read_architecture(name)
    with torch.device("meta"):
        reference, tower = theirs(arch), ImageTower(arch)
    shapes = {key: value.shape for key, value in reference.state_dict().items()}
    assert {key: value.shape for key, value in tower.state_dict().items()} == shapes


def test_what_is_no_plain_tower_is_refused() -> None:
    with pytest.raises(UserError, match="'ViT-H-41' is not an open_clip architecture"):
        FrozenOpenCLIPImageEmbedder("ViT-H-41")
    with pytest.raises(UserError, match=r"needs layers of open_clip's vision_cfg"):
        FrozenOpenCLIPImageEmbedder("RN50")
    with pytest.raises(UserError, match=r"needs timm_.* of open_clip's vision_cfg"):
        FrozenOpenCLIPImageEmbedder("convnext_base")
