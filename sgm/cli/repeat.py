"""`sgm repeat`: a clip once more, by its own recipe, and whether it is the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sgm.cli.console import (
    echo_result,
    echo_stderr,
    errors_as_sentences,
    path_argument,
    path_option,
    progress_bar,
    show_step,
)
from sgm.cli.recipe import stored_frames, stored_picture
from sgm.cli.sample import dtype_of_recipe
from sgm.errors import UserError
from sgm.paths import check_writable, exists, is_folder, write_new
from sgm.process import importing_torch, reuse_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from PIL import Image

    from sgm import Clip, VideoRequest, ViewsRequest
    from sgm.engine import DiffusionEngine

_IDENTICAL = "identical"
_NO_CAUSE = "The recipe tells of no difference: another model of processor or card, or less memory, rounds otherwise."


def repeat(
    clip: Annotated[Path, path_argument("A video that was made here.")],
    picture: Annotated[
        Path | None,
        path_option("The picture or clip it was made of; unless given, the page's copy beside it, if there is one."),
    ] = None,
    last: Annotated[
        Path | None, path_option("The picture at which it ends; unless given, the page's copy beside it.")
    ] = None,
    out: Annotated[Path | None, path_option("Keep the new video there, a name ending in .mp4.")] = None,
    background_model: Annotated[
        str, typer.Option(help="rembg's model that removes backgrounds, SV3D, SV4D.")
    ] = "u2net",
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Take as little of the GPU's memory as can be; a bit slower.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ... Unless given, the fastest.")] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, typer.Option(help="Unless given, the recipe's.")
    ] = None,
    checkpoint: Annotated[Path | None, path_option("Other weights: a file or a diffusers folder.")] = None,
    base: Annotated[Path | None, path_option("What a checkpoint of the network alone is laid over.")] = None,
    lora: Annotated[
        list[Path] | None, path_option("A LoRA of the recipe, where it is not in the folder loras. May be repeated.")
    ] = None,
) -> None:
    """Make a clip again from its recipe, and say whether it is identical: of SV4D's a view, the grid or the walk.

    Prints "identical", or the largest difference of a pixel, then what differs between then and now. Exit codes: 0,
    identical; 1, different; 2, it could not be made or compared. Nothing is written but --out.
    """
    with errors_as_sentences(code=2):
        with importing_torch():
            from sgm import (
                Clip,
                Smoothing,
                ViewsRequest,
                choose_device,
                differences,
                is_marked,
                load_engine,
                write_video,
            )
            from sgm.recipe import hash_of, made_by

        settings, request = _recipe(clip)
        what, stored = ("clip", "input.mkv") if isinstance(request, ViewsRequest) else ("picture", "input.png")
        source = picture or stored_picture(clip, stored)
        if source is None:
            of_film = ": a frame of the clip that it extends, the page's input.png beside its own film.mp4"
            raise UserError(
                f"{clip} does not hold the {what} that it was made of{of_film if 'links' in settings else ''}: give it "
                "with --picture."
            )
        if out is not None:
            _check_out(out)
        name, goal, smoothing = (
            made_by(settings).get("view", ""),
            _last_picture(clip, request, last),
            Smoothing.of(settings),
        )
        then, lossless = _frames_of(clip, request, smoothing.length(request.frames), name)
        kind = dtype or dtype_of_recipe(settings, choose_device(device))
        load = partial(load_engine, device=device, dtype=kind, low_memory=low_memory)
        weights = {"checkpoint": checkpoint, "base": base, "loras": _named(lora or [])}
        options = source, background_model, low_memory, weights, load
        if isinstance(request, ViewsRequest):
            seen, make = _view(name, request, *options)
        else:
            seen, make = _clip(request, *options, goal, made_by(settings).get("last"))
        made_of = made_by(settings).get("picture")
        if made_of and made_of != hash_of(seen):
            echo_stderr(f"{source} is not the recipe's {what}, or is cropped otherwise: the clip will differ.")
        again = make()
        again = again if is_marked(settings) else again.unmarked()
        own, again = again.frames, Clip(*smoothing.apply(again.frames, again.fps, again.settings))
        verdict = _verdict(made_by(settings).get("frames"), own, then, lossless, again)
        same = verdict.startswith(_IDENTICAL)
        for sentence in (verdict, *(differences(settings, again.settings) or ([] if same else [_NO_CAUSE]))):
            echo_result(sentence)
        if out is not None:
            write = partial(write_video, frames=again.frames, fps=again.fps, settings=again.settings)
            echo_stderr(f"The new clip: {write_new(out, write)}")
    raise typer.Exit(0 if same else 1)


def _named(loras: list[Path]) -> dict[str, Path]:
    """Files of LoRAs by their names in recipes."""
    return {path.name.removesuffix(".safetensors"): path for path in loras}


def _clip(
    request: VideoRequest,
    source: Path,
    background_model: str,
    low_memory: bool,
    weights: dict[str, Any],
    load: Callable[..., DiffusionEngine],
    goal: Image.Image | None,
    known: str | None,
) -> tuple[Image.Image, Callable[[], Clip]]:
    """The picture as the model sees it, and what makes the clip of it. Checks before all that can be checked.

    goal, known: the last picture of a clip that ends at one, and the recipe's hash of it.
    """
    from sgm import check_weights, generate, open_picture
    from sgm.recipe import hash_of

    image = open_picture(source, keep_alpha=request.fit == "object")
    unfilled = check_weights(request.version, **weights, lora=request.lora)
    seen = request.family.prepare(image, request, background_model)
    if goal and known and known != hash_of(request.family.prepare(goal, request, background_model).frame()):
        echo_stderr("The last picture is not the recipe's, or is cropped otherwise: the clip will differ.")

    def make() -> Clip:
        with progress_bar() as show, reuse_freed_memory():
            engine = load(request.version, **weights, unfilled=unfilled, on_progress=partial(show, "load"))
            follow = partial(show_step, show, set())
            return generate(engine, request, seen.image, follow, low_memory=low_memory, last=goal)

    return seen.frame(), make


def _view(name: str, request: ViewsRequest, source: Path, *options: Any) -> tuple[np.ndarray, Callable[[], Clip]]:
    """As `_clip`, of a view, the grid or the walk of another clip."""
    import numpy as np

    from sgm.cli.views import ViewsWork

    work = ViewsWork(request, source, *options)
    return np.stack([np.asarray(frame) for frame in work.seen]), lambda: work.run()[name]


def _recipe(clip: Path) -> tuple[dict[str, Any], VideoRequest]:
    """A clip's recipe and its request. Raises UserError for a YAML, too, which has no frames to compare with."""
    from sgm import ViewsRequest, read_recipe, request_of
    from sgm.recipe import made_by, recipe_text

    if recipe_text(clip) is not None:
        raise UserError(f"{clip} holds settings, but no frames to compare with: give a video that was made here.")
    settings = read_recipe(clip)
    request = request_of(settings)
    names = ["input", *(f"view-{i + 1}" for i in range(request.model.num_views)), "grid", "walk"]
    if isinstance(request, ViewsRequest) and made_by(settings).get("view") not in names:
        raise UserError(f"{clip} does not say which of the clips of {request.version} it is: give one that does.")
    return settings, request


def _last_picture(clip: Path, request: VideoRequest, last: Path | None) -> Image.Image | None:
    """The last picture, for a clip that ends at one. Raises UserError where it is lacking, or where there is none."""
    from sgm import open_picture

    if not request.takes_last:
        if last is not None:
            raise UserError(f"{clip} ends at no last picture: leave out --last.")
        return None
    source = last or stored_picture(clip, "last.png")
    if source is None:
        raise UserError(f"{clip} does not hold the picture at which it ends: give it with --last.")
    return open_picture(source, keep_alpha=request.fit == "object")


def _check_out(out: Path) -> None:
    """Raise UserError for a name at which no video can be written."""
    if out.suffix.lower() != ".mp4" or is_folder(out):
        raise UserError(f"--out {out} must be a name ending in .mp4.")
    check_writable(out.parent)
    exists(out)


def _frames_of(clip: Path, request: VideoRequest, count: int, view: str) -> tuple[np.ndarray, bool]:
    """A clip's frames, of a film the `count` of its last clip; and whether they are without loss, as the page's are.

    view: which of a request's clips it is, "" of a single one.
    """
    from sgm import read_frames

    beside = stored_frames(clip)
    frames = read_frames(beside or clip)[0][-count:]
    wanted = (count, *(frames.shape[1:3] if view == "grid" else (request.height, request.width)), 3)
    if frames.shape != wanted:
        count, height, width, _ = frames.shape
        raise UserError(
            f"{clip} holds {count} × {width}×{height} pixels, its recipe makes {wanted[0]} × {wanted[2]}×{wanted[1]}: "
            "it was cut or scaled since."
        )
    return frames, beside is not None


def _verdict(known: str | None, own: np.ndarray, then: np.ndarray, lossless: bool, again: Clip) -> str:
    """Whether a clip has the frames of the recipe, or how far they are from `then`, the file's, uint8 (t, h, w, 3).

    known: the recipe's hash of the frames, of either kind, which decides where there is one. own: the model's own
    frames of the new clip, of which that is. With frames of an MP4 the new ones are compared after the same encoding.
    """
    import numpy as np

    from sgm import encode_video, read_frames
    from sgm.recipe import hash_of, made_by

    if known and (known == made_by(again.settings)["frames"] or known == hash_of(own)):
        return _IDENTICAL
    now = again.frames if lossless else read_frames(encode_video(again.frames, again.fps, again.settings))[0]
    distance = np.abs(np.subtract(then, now, dtype=np.int16))
    if not distance.any():
        if lossless:
            return _IDENTICAL
        return "different, by less than the MP4 shows" if known else f"{_IDENTICAL}, as far as the MP4 shows"
    frame = int(distance.max(axis=(1, 2, 3)).argmax())
    return (
        f"different: a pixel by up to {distance.max()} of 255 levels (frame {frame + 1} of {len(distance)}), "
        f"{100 * np.mean(distance > 0):.2g}% of the values, by {distance.mean():.2g} in the mean"
    )
