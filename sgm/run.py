"""Run: the state of one generation, so that the engine has none: memory plan, progress, cancellation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sgm.conditioning.memo import Memo
from sgm.devices import GIB, free_memory, to_device
from sgm.engine import DTYPES, DiffusionEngine, copy_to, default_dtype
from sgm.errors import UserError
from sgm.families.image import Batch, ready, to_uint8
from sgm.fast.ops import has_fp8
from sgm.fast.shard import Ranks
from sgm.fast.unet import FastUNet
from sgm.loras import loras_of
from sgm.memory import Plan, choose, plans
from sgm.merging import added_bytes, merged
from sgm.request import VideoRequest
from sgm.streaming import stream

logger = logging.getLogger(__name__)
T = TypeVar("T")
Condition = dict[str, Tensor]

_DIVERGED = (
    "The sampler diverged: the latents became infinite or no number. Take the version's own sampler and schedule, or "
    "move order, s_churn, guidance and the range of sigmas towards their usual values."
)

# Phase -> (share of the job's time before the phase, share that it takes), typical.
_PHASE_SHARES = {"load": (0.0, 0.0), "encode": (0.0, 0.03), "sample": (0.03, 0.77), "decode": (0.8, 0.2)}


@dataclass(frozen=True)
class Progress:
    """Progress of a generation: step `step` of `total` of a phase is done.

    phase: "load", "encode", "sample" or "decode". note: the memory plan, on a GPU, or what was done otherwise
    than planned. preview: in "sample", a function that draws the current estimate, uint8 (n, h, w, 3), at the latents'
    size: of all frames or, in the first third of the steps, of the middle one alone; of several views, those at the
    middle time, side by side.
    """

    phase: str
    step: int
    total: int
    note: str = field(default="", compare=False)
    preview: Callable[[], np.ndarray] | None = field(default=None, compare=False, repr=False)

    @property
    def fraction(self) -> float:
        """Share of the whole job that is done, 0 to 1, estimated from the phases' typical shares of the time."""
        start, share = _PHASE_SHARES[self.phase]
        return start + share * self.step / self.total


_CORRECTION = 0.7  # share of what was lost, by which a latent is moved

OnStep = Callable[[Progress], None]


class _Overflow(Exception):
    """A part of the engine, of the name that is given, had a result that is not finite."""


def _finite(*values: Tensor) -> bool:
    """Whether all values are numbers, none infinite."""
    return all(bool(torch.isfinite(value).all()) for value in values)


def _ignore(*_: object) -> None:
    """The default callback: does nothing."""


class _Inputs(Mapping[str, Tensor]):
    """The conditioner's inputs on a device: each is waited for, and copied there, when it is asked for."""

    def __init__(self, batch: Batch, device: torch.device) -> None:
        self._batch, self._device = batch, device

    def __getitem__(self, key: str) -> Tensor:
        return to_device(ready(self._batch[key]), self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch)

    def __len__(self) -> int:
        return len(self._batch)


class Run:
    """One generation on an engine, which other threads may be using, too.

    On a GPU, the fastest memory plan that fits into the free memory is used (low_memory: not the fastest of all). If
    memory runs out nevertheless, the next smaller plan replaces it and the evaluation that failed is repeated. A part
    of the engine whose result overflows float16 runs again, and from then on, in a dtype of float32's range. `check` is
    called before each block of a network and each chunk of the decoder. Exceptions of `check` and `on_step` end the run
    and reach the caller. The request's LoRAs are merged into a network of the run's, not the engine's. memo: embeddings
    of the engine's earlier runs. ranks: the processes that make this run together. note: the progress's, to which the
    memory plan is added. Raises WeightsError for LoRAs that are missing or do not fit, UserError for results that are
    not finite all the same.
    """

    def __init__(
        self,
        engine: DiffusionEngine,
        request: VideoRequest,
        on_step: OnStep | None = None,
        check: Callable[[], None] | None = None,
        low_memory: bool = False,
        memo: Memo | None = None,
        ranks: Ranks | None = None,
        note: str = "",
    ) -> None:
        if memo is not None and memo.engine is not engine:
            raise ValueError("The memo is another engine's: make one for each.")
        self.engine, self.request, self.memo = engine, request, memo
        self.on_step, self.check = on_step or _ignore, check or _ignore
        self.estimate: Tensor  # the latest estimate of the clean latents (t, c, h, w)
        # The network for a condition that is in use, with the network and the plan that it was made from.
        self._conditioned: dict[object, tuple[FastUNet, Plan, Callable[..., Tensor]] | None] = {}
        # A part of the engine that is offloaded or overflows; its copy's dtype if another, if that is streamed, and it.
        self._copy: tuple[nn.Module, torch.dtype | None, bool, Any] | None = None
        self._wider: dict[str, torch.dtype] = {}  # part that overflowed -> the dtype that it runs in
        # What was first not finite: 0 nothing, 1 the network's result, 2 the sampler's x, 3 the conditions.
        self._first_fault, self._evaluations = torch.zeros((), dtype=torch.int8, device=engine.device), 0
        self.loras = loras_of(request.lora, engine.loras)
        self._merged: tuple[FastUNet, FastUNet] | None = None  # the engine's network, and that with the LoRAs
        self.ranks = ranks or Ranks()
        doubled = self.ranks.size == 1 and request.needs_uc
        self._clip = request.rows, request.height, request.width, doubled
        self._fp8 = request.speed_of.fp8 and has_fp8(engine.device)
        self.plan, self.note = Plan(), note
        self._free = free_memory(engine.device)
        added = added_bytes(self.network, engine.network)  # also where there is no plan: what does not fit is said now
        if self._free is not None:
            self.plan = self.ranks.plan or choose(engine, *self._clip, self._free, low_memory, added, self._fp8)
            on_each = f" on each of {self.ranks.size} GPUs" if self.ranks.size > 1 else ""
            self.note = f"{note} GPU memory{on_each}: {self.plan} of {self._free / GIB:.1f} GiB.".lstrip()
            logger.info(self.note)
            self._move_weights()
        self._explain_exact()
        self._was_in_8_bits = False  # an evaluation that is in the clip
        usual = DTYPES[default_dtype(engine.device)]
        if engine.device.type == "cpu" and usual == torch.float32 != engine.dtype:
            kind = str(engine.dtype).removeprefix("torch.")
            self.note = f"{self.note} This processor computes {kind} far more slowly than float32.".lstrip()

    @property
    def cost(self) -> str:
        """What is lost for the request's speed (`Speed.cost`) in the evaluations so far; "" for nothing."""
        speed = self.request.speed_of
        return speed.cost if self._was_in_8_bits else speed.without_fp8.cost

    @property
    def _in_8_bits(self) -> bool:
        """Whether the network's products are in float8 by the present plan."""
        return self._fp8 and not self.plan.streamed

    @property
    def network(self) -> FastUNet:
        """The engine's network, with the request's LoRAs."""
        base = self.engine.network
        if self._merged is None or self._merged[0] is not base:
            self._merged = base, merged(base, self.loras, self.request.version)
        return self._merged[1]

    def tell_followers(self, *given: Any) -> None:
        """Have the other processes make this run, too. given: the further arguments of `generate`, or of its kind."""
        loras = {lora.name: lora.path.absolute() for lora in self.loras}
        self.ranks.begin(self.request.settings(), given, self.plan, loras)

    def _explain_exact(self) -> None:
        """Add to the note why the network's products are exact where they were to be in float8."""
        if self.request.speed_of.fp8 and not self._in_8_bits:
            why = "its blocks come one after the other" if self.plan.streamed else "this device has no others"
            self.note = f"{self.note} The network's products are exact, not in 8 bits: {why}.".lstrip()

    def report(self, phase: str, step: int, total: int, preview: Callable[[], np.ndarray] | None = None) -> None:
        """Call `on_step` with the progress."""
        self.on_step(Progress(phase, step, total, self.note, preview))

    def conditions(self, batch: Batch) -> tuple[Condition, Condition]:
        """Condition and unconditional condition. batch: the conditioner's inputs by name.

        They have one row for each frame, except those of several views, which have one for each time or view. Whether
        they are finite the first evaluation in `sample` finds out, so that Python need not wait for them here.
        """
        inputs = _Inputs(batch, self.engine.device)

        def embed(conditioner: Any) -> tuple[Condition, Condition]:
            return conditioner.get_unconditional_conditioning(inputs, check=self.check, memo=self.memo)

        c, uc = self._with_part("conditioner", embed)
        finite = [torch.isfinite(value).all() for cond in (c, uc) for value in cond.values()]
        self._keep_first(3 - 3 * torch.stack(finite).all().to(torch.int8))
        return (c, uc) if "cond_view" in c else (self._per_frame(c), self._per_frame(uc))

    def latents(self, picture: Tensor, corrections: int = 0) -> Tensor:
        """The scaled latent (1, c, h / f, w / f) of a picture (1, 3, h, w) in [-1, 1], by the conditioner's encoder.

        corrections: how often it is moved by what decoding and encoding it loses, so that what it decodes to is nearer.
        """

        def encode(pixels: Tensor) -> Tensor:
            def moments(conditioner: Any) -> Tensor:
                encoder = next(part.encoder for part in conditioner.embedders if hasattr(part, "encoder"))
                weights = next(encoder.parameters())
                return encoder.moments(pixels.to(weights, memory_format=torch.channels_last), self.check)

            return (
                self._with_part("conditioner", moments, _finite).chunk(2, dim=1)[0].float() * self.engine.scale_factor
            )

        latent = wanted = encode(picture)
        for _ in range(corrections):
            decoded = self.pictures(latent.expand(2, -1, -1, -1))[:1]  # a clip of two frames, as decoders of clips know
            latent = latent + _CORRECTION * (wanted - encode(decoded.clamp(-1, 1)))
        return latent

    def denoiser(self, cond: Condition) -> Callable[[Tensor, Tensor], Tensor]:
        """The denoiser for a condition of (b t) frames: x (b t, c, h, w), sigma (b t,) -> estimate of the clean x."""
        frames = self.request.rows
        key = object()

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            def evaluate(network: FastUNet) -> Tensor:
                plan, conditioned = self.plan, self._conditioned.get(key)
                if conditioned is None or conditioned[0] is not network or conditioned[1] is not plan:
                    conditioned = self._conditioned[key] = (
                        None  # frees the old one's memory before the new one is built
                    )
                    check = self.ranks.gate(self.check)
                    run = network.conditioned(
                        cond,
                        frames,
                        plan.max_values,
                        plan.clip_by_clip,
                        check,
                        self.ranks,
                        # The graphs of two conditions would keep twice the memory.
                        record=not (plan.offload or self.request.bounded),
                        cache_interval=self.request.speed_of.cache_interval,
                        evaluations=None if self.request.bounded else self.request.evaluations,
                        fp8=self._in_8_bits,
                    )
                    conditioned = self._conditioned[key] = network, plan, run
                if not self._evaluations:
                    self._raise_fault()
                with self.ranks.together():
                    estimate = self.engine.denoiser(conditioned[2], x, sigma)
                self._was_in_8_bits |= self._in_8_bits
                return estimate

            estimate = self._with_part("network", evaluate)
            self._watch(x, estimate)
            self.estimate = estimate[-frames:]  # in a guided batch the conditional estimates are the last
            return estimate

        return denoise

    def sample(self, work: Callable[[], Tensor]) -> Tensor:
        """The latents that `work()` samples with this run's denoiser; again where conditioner or network overflowed."""
        while True:
            self._evaluations = 0
            try:
                z = work()
                self._raise_fault()
                if not _finite(z):
                    raise UserError(_DIVERGED)
                return z
            except _Overflow as overflow:
                self._widen(str(overflow))
                self._first_fault = torch.zeros_like(self._first_fault)
                self._conditioned.clear()

    def decode(self, z: Tensor) -> np.ndarray:
        """Scaled latents (t, c, h, w) -> frames, uint8 (t, h, w, 3)."""
        return to_uint8(self.pictures(z, lambda done, of: self.report("decode", done, of)))

    def pictures(self, z: Tensor, report: Callable[[int, int], None] = lambda done, of: None) -> Tensor:
        """Scaled latents (t, c, h, w) -> pictures (t, 3, f h, f w), about [-1, 1]. report(done, of): of blocks."""
        self._conditioned.clear()  # frees the recorded evaluations' memory
        shard = self.ranks.shard(len(z))
        check, gate = (self.check, _ignore) if shard.size == 1 else (_ignore, self.ranks.gate(self.check))

        def on_block(done: int, of: int) -> None:
            report(done, of)
            gate()

        def decode_frames(first_stage: nn.Module) -> Tensor:
            with self.ranks.together():
                at_once, held = self.request.decode_chunk, self.plan.max_held
                return self.engine.decode_clip(z, at_once, on_block, first_stage, check, shard, held)

        return self._with_part("autoencoder", decode_frames, _finite)

    def _with_part(
        self, name: str, work: Callable[[Any], T], is_finite: Callable[[T], bool] = lambda result: True
    ) -> T:
        """The result of `work(part)`, the part on the device.

        Repeated with a smaller plan where memory runs out, and with a wider dtype where the result is not finite.
        """
        while True:
            try:
                result = work(self._on_device(name))
                if is_finite(result):
                    return result
                del result
                self._raise_fault()  # where the conditions before it were not finite, it begins with them
                self._widen(name)
                continue
            except torch.cuda.OutOfMemoryError:
                smaller = self._smaller()
                if smaller is None:
                    raise
            # After the except block, since the exception keeps the tensors of the failed evaluation alive.
            self.plan, self._copy = smaller, None
            self._conditioned.clear()
            self.note = f"GPU memory ran out; from here on {self.plan}."
            self._explain_exact()
            logger.info(self.note)
            self._move_weights()
            torch.cuda.empty_cache()

    def _smaller(self) -> Plan | None:
        """The plan to go on with where memory ran out."""
        if self._free is None or self.ranks.size > 1:
            return None
        now = self.plan.offload, self.plan.streamed
        return next((p for p in plans(self.engine, *self._clip, self._fp8) if (p.offload, p.streamed) > now), None)

    def _watch(self, x: Tensor, estimate: Tensor) -> None:
        """Note what is first not finite: the sampler's x, or the network's estimate from a finite x.

        Every fifth evaluation only is it looked at, since on a GPU that costs some milliseconds: Python then waits.
        """
        fault = torch.where(torch.isfinite(x).all(), 1 - torch.isfinite(estimate).all().to(torch.int8), 2)
        self._keep_first(fault)
        self._evaluations += 1
        if self._evaluations % 5 == 0:
            self._raise_fault()

    def _keep_first(self, fault: Tensor) -> None:
        """Note a fault, 0-dim int8, unless there is one already; Python does not wait for its value."""
        self._first_fault = torch.where(self._first_fault > 0, self._first_fault, fault)

    def _raise_fault(self) -> None:
        """Raise UserError where the sampler diverged, _Overflow where a part overflowed."""
        match int(self._first_fault):
            case 1:
                raise _Overflow("network")
            case 2:
                raise UserError(_DIVERGED)
            case 3:
                raise _Overflow("conditioner")

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype that a part runs in: the engine's, unless it overflowed."""
        return self._wider.get(name, self.engine.dtype)

    def _widen(self, name: str) -> None:
        """Have a part that overflowed run in a dtype of float32's range. Raises UserError for one that does already."""
        dtype = self.dtype_of(name)
        if dtype is not torch.float16:
            raise UserError(
                f"The {name} overflowed in {str(dtype).removeprefix('torch.')}: its result is infinite or no number. "
                "The weights are damaged or of another model, or a setting is far out of its usual range."
            )
        # bfloat16 is as fast and small as float16; a decoder's rounding in it would be seen.
        on_gpu = name == "network" and self.engine.device.type == "cuda"
        self._wider[name] = torch.bfloat16 if on_gpu else torch.float32
        wider = str(self._wider[name]).removeprefix("torch.")
        self.note = f"The {name} overflowed float16: it runs in {wider} from here on."
        logger.info(self.note)

    def _move_weights(self) -> None:
        self.engine.move_weights(torch.device("cpu") if self.plan.offload else self.engine.device)

    def _on_device(self, name: str) -> Any:
        """A part of the engine on the device: the engine's own or, if offloaded, a copy, one part at a time."""
        device, network = self.engine.device, self.network
        module = network.model if name == "network" else self.engine.parts[name]
        dtype, place = self._wider.get(name), next(module.parameters()).device
        streamed = self.plan.streamed and name == "network" and place.type == "cpu"  # else another run has it there
        if dtype is None and not streamed and place == device:
            self._copy = None
            return network if name == "network" else module
        key = module, dtype, streamed
        if self._copy is None or self._copy[:3] != key:
            self._copy = None  # frees the old copy's memory before the new copy is made
            if self.plan.streamed:  # else what stays keeps the allocator's large pieces, in which little has room
                torch.cuda.empty_cache()
            if streamed:
                copy: Any = stream(network.model, device, dtype)
            else:
                copy = copy_to(module, device, dtype)
                copy = FastUNet(copy) if name == "network" else copy
            self._copy = *key, copy
        return self._copy[3]

    def _per_frame(self, cond: Condition) -> Condition:
        """A condition with one row for each frame: where there is one for the clip, it is repeated."""
        frames = self.request.frames
        return {k: v if len(v) == frames else v.repeat_interleave(frames, 0) for k, v in cond.items()}
