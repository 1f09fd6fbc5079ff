"""Memo: the embeddings of earlier clips, by the exact inputs, so that what clips have in common is computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Embedding = Tensor | tuple[Tensor, Tensor]


class Memo:
    """The embeddings that an engine's clips have needed, for `generate(engine, ..., memo=Memo(engine))`.

    An embedding is taken from it where embedder, dtype and every bit of the input are the same, so that a clip is the
    same with a memo and without. It keeps the `most` embeddings that were used last, some megabytes each.
    """

    def __init__(self, engine: object, most: int = 32) -> None:
        self.engine, self._most = engine, most
        self._known: dict[tuple[Any, ...], Embedding] = {}

    def embed(self, name: str, embedder: nn.Module, x: Tensor, check: Callable[[], None] | None = None) -> Embedding:
        """`embedder(x, check)`. name: of the input, which tells the engine's embedders apart."""
        weight = next(embedder.parameters(), None)
        if weight is None:  # of scalars, as quick as a look into the memo
            return embedder(x, check)
        content = x.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        key = name, weight.dtype, weight.device, x.dtype, x.shape, hashlib.blake2b(content).digest()
        embedding = self._known.pop(key, None)
        if embedding is None:
            embedding = embedder(x, check)
        self._known[key] = embedding  # the latest is the last
        if len(self._known) > self._most:
            self._known.pop(next(iter(self._known)), None)
        return embedding
