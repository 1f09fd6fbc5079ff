"""Real clips to train on: random samples of a folder's clips, or of shards that stream, checked as they are read."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from sgm.conditioning.camera import motion_bucket
from sgm.errors import UserError, printable
from sgm.media.kinds import listed
from sgm.media.reading import open_video
from sgm.training.checks import FASTEST, LeftOut, Seen, copies, left_out, look, retimed, thinned
from sgm.training.data import ClipBatch
from sgm.training.shards import Place, Sample, clips_and_shards, stream

logger = logging.getLogger(__name__)

MAX_STRIDE = 3  # every frame of a clip is taken, or every second or third
_MAX_COUNTED = 100_000  # frames of a file that does not say how many it has
_MAX_STORED = 4 << 30  # bytes of frames that are kept in memory
_SMALL = 16  # a clip is read whole, and kept, whose frames take less than this share of _MAX_STORED
_MOST_VAIN = 500
_THREADS = 8  # that read clips, each of which may be large
_TELL_AFTER = 5.0  # seconds


class Facts(NamedTuple):
    """What a clip's file says of it. count: of its frames; rate: frames a second; size: (width, height), upright."""

    count: int
    rate: float
    size: tuple[int, int]
    hdr: bool


class Reel(NamedTuple):
    """Frames in a row, evenly in time. frames: (t, 3, h, w), uint8; rate: a second; seen: what is seen of them."""

    frames: Tensor
    rate: float
    seen: Seen


def facts_of(source: Path | bytes, name: str) -> Facts:
    """The facts of a clip, of which one frame is decoded. Raises UserError where that cannot be."""
    with open_video(source, name) as video:
        count = video.count(_MAX_COUNTED)
        next(video.timed())
        return Facts(count, video.rate, video.size, video.is_hdr)


def fitted(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crop as `fit_picture` does, with OpenCV, in a fifth of the time: (H, W, 3) -> (h, w, 3), uint8."""
    h, w = size
    scale = max(h / pixels.shape[0], w / pixels.shape[1])
    whole = max(w, round(pixels.shape[1] * scale)), max(h, round(pixels.shape[0] * scale))
    pixels = cv2.resize(pixels, whole, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    left, top = (whole[0] - w) // 2, (whole[1] - h) // 2
    return pixels[top : top + h, left : left + w]


def read_reel(source: Path | bytes, name: str, size: tuple[int, int], rate: float, start: float, most: int) -> Reel:
    """At most `most` frames of a clip from `start` seconds on, cropped to size (height, width).

    rate: the clip's own; of a faster one than FASTEST, every second frame is taken, every third, and so on. Frames come
    at the mean rate of their time stamps: each is the nearest in time. Raises UserError where none can be read.
    """
    every = thinned(rate) or 1
    frames, times = [], []
    with open_video(source, name) as video:
        for at, pixels in islice(video.timed(start), 0, most * every, every):
            frames.append(fitted(pixels, size))
            times.append(at)
    if not frames:
        raise UserError(f"{name} is cut short: it has no frame at {start:.1f} seconds.")
    rate = min(rate, FASTEST)
    if len(times) > 1:
        order, rate = retimed(times)
        frames = [frames[i] for i in order]
    return Reel(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous(), rate, look(frames))


class Cut(NamedTuple):
    """A sample. frames: (t, 3, h, w), uint8; motion: percent of the width from each frame to the next."""

    frames: Tensor
    motion: float
    rate: float


def cut(reel: Reel, frames: int, stride: int) -> Cut | None:
    """A random sample of `frames` frames, every `stride`th of a reel or, where these are too few, more of them.

    None where none can be taken.
    """
    stride = max(min(stride, (len(reel.frames) - 1) // max(frames - 1, 1)), 1)
    place, flipped = torch.rand(()), torch.rand(()) < 0.5
    starts = reel.seen.starts(frames, stride)
    if not len(starts):
        stride, starts = 1, reel.seen.starts(frames)
        if not len(starts):
            return None
    start = int(starts[int(place * len(starts))])
    taken = reel.frames[start : start + (frames - 1) * stride + 1 : stride]
    steps = reel.seen.motion[start : start + max((frames - 1) * stride, 1)]
    motion = float(steps.mean()) * stride if len(steps) else 0.0
    return Cut(taken.flip(-1) if flipped else taken, motion, reel.rate / stride)


class Clips:
    """Base of sources of real clips: the camera is unknown, the motion measured by dense optical flow (DIS).

    size: (height, width) that every frame is scaled to cover and cropped to. next: where what is drawn next comes from;
    empty where draws do not depend on those before.
    """

    next: tuple[int, ...] = ()

    def __init__(self, place: Path, size: tuple[int, int], say: Callable[[str], object]) -> None:
        self.place, self.size, self.say = place, size, say
        self._left_out = LeftOut(place, say)

    def go_to(self, place: Sequence[int]) -> None:
        """Have the next draw come from a place, the `next` of a run before a stop."""

    def reels(self, strides: Sequence[int], frames: int) -> list[Reel | None]:
        """A random reel for each sample of every so many frames, `frames` of them; None for what cannot be used."""
        raise NotImplementedError

    def draw(self, n: int, frames: int, device: torch.device) -> ClipBatch:
        """n clips of `frames` frames. Raises UserError where there are none."""
        cuts: list[Cut] = []
        vain = 0  # clips in a row of which nothing could be taken
        while len(cuts) < n:
            strides = torch.randint(1, MAX_STRIDE + 1, (n - len(cuts),)).tolist()
            for reel, stride in zip(self.reels(strides, frames), strides, strict=True):
                taken = reel and cut(reel, frames, stride)
                cuts += [taken] if taken else []
                vain = 0 if taken else vain + 1
            if vain > self._most_vain(frames):
                raise UserError(
                    f"No clip of {self.place} has {frames} frames in a row that can be trained on: see "
                    f"sgm data {self.place}, or set data.frames."
                )
        return self._batch(cuts, device)

    def _most_vain(self, frames: int) -> int:
        """How many clips in a row may have nothing, before it is taken that none has."""
        return _MOST_VAIN

    def _batch(self, cuts: Sequence[Cut], device: torch.device) -> ClipBatch:
        n, frames, (h, w) = len(cuts), len(cuts[0].frames), self.size
        pixels = torch.stack([taken.frames for taken in cuts]).to(device).float() / 127.5 - 1
        unknown = torch.full((n, frames, 2, h // 8, w // 8), float("nan"), device=device)
        first = pixels[:, :1].expand_as(pixels)
        seen = torch.ones_like(unknown[:, :, :1])
        motion = torch.tensor([float(motion_bucket(taken.motion)) for taken in cuts], device=device).clamp(max=511)
        fps = torch.tensor([taken.rate - 1 for taken in cuts], device=device)
        return ClipBatch(pixels, first, unknown, seen, motion, fps)

    def _read(
        self, source: Path | bytes, name: str, facts: Facts, frames: int, span: int, at: float = 0.0
    ) -> Reel | None:
        """A reel of `span` frames of a clip, at a share `at` of its length; None, and said, where it has no sample."""
        start = at * max(facts.count - span * thinned(facts.rate), 0) / facts.rate
        try:
            reel = read_reel(source, name, self.size, facts.rate, start, span)
        except UserError as error:
            self._left_out.note("unreadable", str(error), frames)
            return None
        if not (kind := reel.seen.against(frames)):
            return reel
        self._left_out.note(kind, Path(name).name, frames)
        return None


class FolderClips(Clips):
    """Samples of the clips in a folder.

    At the start each file is opened, and one frame decoded; what it shows is looked at when it is drawn. Short clips
    are read whole, and then kept in memory, up to `_MAX_STORED` bytes; of others no more is decoded than the sample.
    """

    def __init__(
        self, place: str | Path, size: tuple[int, int], paths: Sequence[Path], say: Callable[[str], object]
    ) -> None:
        super().__init__(Path(place), size, say)
        twins = copies(paths)
        self.clips = self._opened([path for path in paths if path not in twins])
        self._tell("copy", [f"{path.name} (of {original.name})" for path, original in twins.items()])
        slow = [path for path, facts in self.clips.items() if not thinned(facts.rate)]
        self._tell("slow", [f"{path.name} ({self.clips.pop(path).rate:.2g})" for path in slow])
        if not self.clips:
            raise UserError(f"{self.place} holds no clips that can be used: see sgm data {self.place}.")
        self._reels: dict[Path, Reel | None] = {}  # of short clips; None for those that cannot be used
        self._stored, self._storing = 0, Lock()
        self._long: dict[int, list[Path]] = {}  # the clips that are long enough

    def _opened(self, paths: Sequence[Path]) -> dict[Path, Facts]:
        """The facts of clips; those that cannot be read are left out and said."""
        found: dict[Path, Facts] = {}
        failed: list[str] = []
        told = time.monotonic()

        def opened(path: Path) -> Facts | UserError:
            try:
                return facts_of(path, str(path))
            except UserError as error:
                return error

        with ThreadPoolExecutor(_THREADS) as pool:
            for number, (path, facts) in enumerate(zip(paths, pool.map(opened, paths), strict=True)):
                if isinstance(facts, Facts):
                    found[path] = facts
                else:
                    failed.append(str(facts))
                if time.monotonic() > told + _TELL_AFTER:
                    told = time.monotonic()
                    self.say(f"Clips opened: {number + 1} of {len(paths)}")
        if not found:
            raise UserError(f"{self.place} holds no clips that can be used: {listed(failed, '; ')}")
        self._tell("unreadable", failed)
        return found

    def _tell(self, kind: str, names: Sequence[str], frames: int = 0) -> None:
        if names:
            self.say(left_out(kind, names, frames, self.place))

    def _most_vain(self, frames: int) -> int:
        return max(_MOST_VAIN, 10 * len(self._long_enough(frames)))  # of which most are known then, and not read again

    def reels(self, strides: Sequence[int], frames: int) -> list[Reel | None]:
        paths = self._long_enough(frames)
        chosen = [paths[i] for i in torch.randint(len(paths), (len(strides),))]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._reel, chosen, torch.rand(len(strides)).tolist(), strides, repeat(frames)))

    def _reel(self, path: Path, at: float, stride: int, frames: int) -> Reel | None:
        """A reel: all of a short clip; of others as much as the sample takes, at a share `at` of the length."""
        if path in self._reels:
            return self._reels[path]
        facts = self.clips[path]
        bytes_all = facts.count * 3 * self.size[0] * self.size[1]
        whole = bytes_all < _MAX_STORED // _SMALL
        span = facts.count if whole else (frames - 1) * stride + 1
        reel = self._read(path, str(path), facts, frames, span, at)
        with self._storing:
            if whole and path not in self._reels and self._stored + bytes_all <= _MAX_STORED:
                self._stored += bytes_all if reel else 0
                self._reels[path] = reel
        return reel

    def _long_enough(self, frames: int) -> list[Path]:
        """The clips of at least `frames` frames. The first time that clips are too short, they are said."""
        if frames not in self._long:
            lengths = {path: -(-facts.count // thinned(facts.rate)) for path, facts in self.clips.items()}
            self._long[frames] = [path for path, length in lengths.items() if length >= frames]
            if not self._long[frames]:
                raise UserError(
                    f"No clip has {frames} frames, the longest {max(lengths.values())}: give longer ones or set "
                    "data.frames."
                )
            short = [f"{path.name} ({length})" for path, length in lengths.items() if length < frames]
            self._tell("short", short, frames)
        return self._long[frames]


class ShardClips(Clips):
    """Samples of the clips in shards, one of each, in passes over all of them: see `stream`.

    seed: what the order of the passes depends on.
    """

    def __init__(
        self,
        place: str | Path,
        size: tuple[int, int],
        shards: Sequence[Path],
        say: Callable[[str], object],
        seed: object = 0,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        super().__init__(Path(place), size, say)
        self.shards, self.seed, self.part, self.parts = shards, seed, part, parts
        self._said: set[str] = set()  # what is said in the first pass is not said again
        self.go_to(Place())

    def go_to(self, place: Sequence[int]) -> None:
        self.next = start = Place(*place)
        self._passes = stream(self.shards, self._say, self.seed, self.part, self.parts, start)

    def _say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)

    def reels(self, strides: Sequence[int], frames: int) -> list[Reel | None]:
        taken = list(islice(self._passes, len(strides)))
        if len(taken) < len(strides):
            shared = f" for each of the {self.parts} processes that share them" if self.parts > 1 else ""
            raise UserError(f"{self.place} holds no clips that can be read{shared}: see sgm data {self.place}.")
        chosen, self.next = [sample for sample, _ in taken], taken[-1][1]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._reel, chosen, torch.rand(len(strides)).tolist(), strides, repeat(frames)))

    def _reel(self, sample: Sample, at: float, stride: int, frames: int) -> Reel | None:
        name = printable(sample.name)
        try:
            facts = facts_of(content := sample.read(), name)
        except UserError as error:
            self._left_out.note("unreadable", str(error), frames)
            return None
        if thinned(facts.rate):
            return self._read(content, name, facts, frames, (frames - 1) * stride + 1, at)
        self._left_out.note("slow", name, frames)
        return None


def open_clips(
    place: str | Path,
    size: tuple[int, int],
    say: Callable[[str], object] = logger.warning,
    seed: object = 0,
    part: int = 0,
    parts: int = 1,
) -> Clips:
    """The clips of a folder, or of shards (see `clips_and_shards`). Raises UserError where there are none.

    say: is told in a line for each kind what is left out. seed, part, parts: as of `ShardClips`.
    """
    paths, shards = clips_and_shards(Path(place), say)
    if paths:
        return FolderClips(place, size, paths, say)
    return ShardClips(place, size, shards, say, seed, part, parts)
