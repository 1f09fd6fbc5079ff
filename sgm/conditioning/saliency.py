"""Saliency: where a picture's object is, by U²-Net's small network (Qin et al. 2020, arXiv:2005.09007), which ships."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from sgm.errors import UserError
from sgm.versions import bundle

_SIZE = 320  # pixels of either side that the network sees, whatever the picture's shape
_MEAN, _DEVIATION = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)  # of ImageNet's colours


def saliency(picture: Image.Image) -> np.ndarray:
    """How salient each pixel of an RGB picture is: uint8 (h, w), the most salient one at 255, the least at 0.

    Raises UserError where the network's file or onnxruntime is missing.
    """
    small = picture.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.LANCZOS)
    value = _predicted(small.tobytes())
    return np.asarray(Image.fromarray(value).resize(picture.size, Image.Resampling.LANCZOS))


@lru_cache(maxsize=16)  # of a third of a megabyte each: clips of one picture are often made in a row
def _predicted(content: bytes) -> np.ndarray:
    """The network's map of a small picture's bytes: uint8 (_SIZE, _SIZE)."""
    pixels = np.frombuffer(content, np.uint8).reshape(_SIZE, _SIZE, 3).astype(np.float32)
    pixels = (pixels / max(float(pixels.max()), 1e-6) - _MEAN) / _DEVIATION
    session = _session(torch.get_num_threads())
    inputs = {session.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None]}
    value = session.run([session.get_outputs()[0].name], inputs)[0][0, 0]
    return (255 * (value - value.min()) / max(float(value.max() - value.min()), 1e-6)).astype(np.uint8)


@lru_cache(maxsize=1)
def _session(threads: int) -> Any:
    """onnxruntime's session of the network, on the processor."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it tells its makers of each use
    path = bundle() / "checkpoints" / "u2netp.onnx"
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of a missing package or library, or from the file's reader
        raise UserError(
            f"The picture's depth cannot be guessed: {path} could not be opened with onnxruntime "
            f"({type(error).__name__}). Install again, or set depth to 0."
        ) from error
