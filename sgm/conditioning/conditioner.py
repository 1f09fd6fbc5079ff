"""GeneralConditioner: a batch of named inputs -> the network's condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from sgm.conditioning.memo import Memo
from sgm.config import instantiate_from_config

# Rank of an embedding -> the network's input for it; input -> dimension along which embeddings are concatenated.
_KIND = {2: "vector", 3: "crossattn", 4: "concat"}
_JOIN = {"vector": 1, "crossattn": 2, "concat": 1}
_OWN = ("cond_view", "cond_motion")  # input keys whose embedding is the network's input of that very name


class GeneralConditioner(nn.Module):
    """Runs each embedder on its own input and concatenates the results for each input of the network.

    emb_models: configs, each with `input_key` beside `target` and `params`; `ucg_rate` is the share of clips for which
    an embedding is zeroed in training; the first such embedder must give one row for each clip. Returns {"vector":
    (n, a), "crossattn": (n, m, d), "concat": (n, c, h, w)}, without inputs that have no embedder. Where some embedders
    give one row for each clip and others one for each frame, the former are repeated. Embeddings of "cond_view" and
    "cond_motion" are inputs of those names, (n, c, h, w). An embedder may give two embeddings, as of a picture and its
    noise level.
    """

    def __init__(self, emb_models: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.embedders = nn.ModuleList()
        self.input_keys: list[str] = []
        self.ucg_rates: list[float] = []
        for config in emb_models:
            embedder = instantiate_from_config(config)
            if not config.get("is_trainable", False):
                embedder.requires_grad_(False).eval()
            self.embedders.append(embedder)
            self.input_keys.append(config["input_key"])
            self.ucg_rates.append(float(config.get("ucg_rate", 0.0)))

    def forward(self, batch: Mapping[str, Tensor], embedded: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The condition of a batch: a tensor for each input key whose embedding is not in `embedded`, else KeyError."""
        return self._join(self._embed(batch, embedded or {}, drop=self.training))

    def get_unconditional_conditioning(
        self,
        batch_c: Mapping[str, Tensor],
        batch_uc: Mapping[str, Tensor] | None = None,
        force_uc_zero_embeddings: Iterable[str] = ("cond_frames", "cond_frames_without_noise", *_OWN),
        check: Callable[[], None] | None = None,
        memo: Memo | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Condition and unconditional condition for classifier-free guidance, without random dropping.

        check: called before each block of the embedders; an exception that it raises ends the work. memo: embeddings
        of earlier clips.
        """
        c = self._embed(batch_c, check=check, memo=memo)
        uc = c if batch_uc is None else self._embed(batch_uc, check=check, memo=memo)
        return self._join(c), self._join(uc, force_uc_zero_embeddings)

    def _embed(
        self,
        batch: Mapping[str, Tensor],
        embedded: Mapping[str, Tensor] = MappingProxyType({}),
        drop: bool = False,
        check: Callable[[], None] | None = None,
        memo: Memo | None = None,
    ) -> list[tuple[str, Tensor]]:
        embeddings: list[tuple[str, Tensor]] = []
        chance: Tensor | None = None  # one draw for all embedders: those of equal rates are dropped together
        for embedder, key, rate in zip(self.embedders, self.input_keys, self.ucg_rates, strict=True):
            if key in embedded:
                embedding = embedded[key]
            elif (value := batch.get(key)) is None:
                raise KeyError(f"The conditioner needs '{key}'; the batch has {', '.join(sorted(batch))}.")
            else:
                embedding = memo.embed(key, embedder, value, check) if memo else embedder(value, check)
            for part in embedding if isinstance(embedding, tuple) else (embedding,):
                if drop and rate > 0:
                    chance = torch.rand(part.shape[0], device=part.device) if chance is None else chance
                    keep = (chance >= rate).repeat_interleave(len(part) // len(chance))
                    part = part * keep.view(-1, *[1] * (part.ndim - 1))
                embeddings.append((key, part))
        return embeddings

    def _join(self, embeddings: list[tuple[str, Tensor]], force_zero: Iterable[str] = ()) -> dict[str, Tensor]:
        zero = set(force_zero)
        parts: dict[str, list[Tensor]] = {}
        for key, embedding in embeddings:
            kind = key if key in _OWN else _KIND[embedding.ndim]
            parts.setdefault(kind, []).append(torch.zeros_like(embedding) if key in zero else embedding)
        condition = {}
        for kind, values in parts.items():
            rows = max(value.shape[0] for value in values)
            condition[kind] = torch.cat(
                [value.repeat_interleave(rows // value.shape[0], dim=0) for value in values], dim=_JOIN.get(kind, 1)
            )
        return condition
