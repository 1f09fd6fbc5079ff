"""`sgm sample`: pictures to videos. Its options are the fields of a request, from their table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import typer.core

from sgm.cli.console import echo_stderr, errors_as_sentences, progress_bar
from sgm.errors import UserError
from sgm.paths import check_writable, is_folder, write_new
from sgm.process import importing_torch, reuse_freed_memory
from sgm.versions import DEFAULT_VERSION

if TYPE_CHECKING:
    from PIL import Image

    from sgm import Field, VideoRequest


class SampleCommand(typer.core.TyperCommand):
    """A command with an option for each field of a request, including those of samplers and guiders."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move the fields' options from `args` into `ctx.meta["fields"]`, and parse the others as usual."""
        with errors_as_sentences():
            fields = _fields()
        rest, values, words = [], {}, iter(args)
        for word in words:
            if word == "--":
                rest += [word, *words]
                break
            option, equals, text = word.partition("=")
            field = fields.get(option)
            if field is None:
                rest.append(word)
                continue
            argument = text if equals else next(words, None)
            if argument is None:
                ctx.fail(f"Option '{option}' requires an argument.")
            try:
                values[field.name] = field.parse(str(argument))
            except UserError as error:
                raise typer.BadParameter(str(error), ctx=ctx, param_hint=f"'{option}'") from None
        ctx.meta["fields"] = values
        return super().parse_args(ctx, rest)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The fields' part of the help."""
        with formatter.section("Settings of the video (unless given, the version's own)"):
            formatter.write_dl([(f"{name} {_metavar(field)}", _about(field)) for name, field in _fields().items()])


def _fields() -> dict[str, Field]:
    """Option -> field."""
    with importing_torch():
        from sgm import all_fields

    return {f"--{name.replace('_', '-')}": field for name, field in all_fields().items()}


def _metavar(field: Field) -> str:
    """An option's metavariable: its choices or its range."""
    if field.choices:
        return f"<{'|'.join(field.choices())}>"
    numbers = f"{field.low:g} to {field.high:.10g}"
    return f"<{numbers}, ...>" if field.kind is tuple else f"<{numbers}>"


def _about(field: Field) -> str:
    """A field's help, and which versions or choices have it if not all do."""
    from sgm import takers

    owners = takers(field.name)
    return f"{field.help} (Of {owners}.)" if owners else field.help


def sample(
    ctx: typer.Context,
    picture: Annotated[
        Path | None,
        typer.Argument(help="A picture, or a folder of pictures: each becomes a video.", show_default=False),
    ] = None,
    version: Annotated[
        str | None, typer.Option(help=f"Model version; `sgm models` lists them. Unless given, {DEFAULT_VERSION}.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Settings to start from: a video that was made here, or a YAML.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="A folder, or a name ending in .mp4. A taken name gets -2, -3, ... at its end.")
    ] = Path("outputs"),
    background_model: Annotated[str, typer.Option(help="rembg's model that removes the background, SV3D.")] = "u2net",
    turntable: Annotated[bool, typer.Option("--turntable", help="Also write the orbit as an endless .webp.")] = False,
    orbit_plot: Annotated[Path | None, typer.Option(help="Write a picture of the orbit there, a .png.")] = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Take as little of the GPU's memory as can be; a bit slower.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ... Unless given, the fastest.")] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, typer.Option(help="Unless given, what suits the device.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Other weights: a file or a diffusers folder.")] = None,
    base: Annotated[Path | None, typer.Option(help="What a checkpoint of the network alone is laid over.")] = None,
) -> None:
    """Turn a picture, or each picture of a folder, into a video. Prints the path of each video.

    With --recipe, the settings of a video that was made here; those given beside it override. Without a picture, that
    video's own frame stands in for it.
    """
    choices: dict[str, Any] = ctx.meta["fields"]
    with errors_as_sentences(code=2):
        if picture is None and recipe is None:
            raise UserError("Missing argument 'PICTURE': give a picture, or a folder of pictures.")
        to_file = _is_file_name(out, batch=picture is not None and picture.is_dir())
        pictures = _pictures(picture) if picture else []
        request, settings = _request(version, choices, recipe)
        if turntable and not request.family.orbits:
            raise UserError(f"--turntable needs an orbit, which {request.version} does not make: take an SV3D version.")
        if orbit_plot and not (request.family.orbits and orbit_plot.suffix.lower() == ".png"):
            raise UserError(f"--orbit-plot {orbit_plot} needs an SV3D version and a name ending in .png.")
    with errors_as_sentences():
        from sgm import load_engine

        check_writable(out.parent if to_file else out)
        kind = dtype or _dtype_of_recipe(settings, device)
        load = partial(load_engine, request.version, checkpoint=checkpoint, base=base, device=device, dtype=kind)
        if orbit_plot is not None:
            _plot_orbit(request, orbit_plot)
        sources: list[tuple[str, Path | Image.Image]] = [(path.stem, path) for path in pictures]
        if not sources and recipe is not None:
            sources = [(recipe.stem, _picture_of_recipe(recipe, request))]
        work = _Batch(request, out, to_file, load, background_model, turntable, low_memory, settings)
        failed = sum(not made for made in work.run(sources))
    if failed and len(sources) > 1:
        echo_stderr(f"{failed} of {len(sources)} pictures failed.")
    raise typer.Exit(1 if failed else 0)


def _request(
    version: str | None, choices: dict[str, Any], recipe: Path | None
) -> tuple[VideoRequest, dict[str, Any] | None]:
    """The request, and the recipe's settings where it starts from one."""
    with importing_torch():
        from sgm import VideoRequest, read_recipe, request_of

    if "orbit" not in choices and ("elevations" in choices or "azimuths" in choices):
        choices = {**choices, "orbit": "list"}
    if recipe is None:
        return VideoRequest(version or DEFAULT_VERSION, **choices), None
    settings = read_recipe(recipe)
    if version:
        choices = {**choices, "version": version}
    return request_of(settings).replace(**choices), settings


def _dtype_of_recipe(settings: dict[str, Any] | None, device: str | None) -> str | None:
    """The dtype of a recipe, if it was made on the same type of device."""
    from sgm import choose_device
    from sgm.recipe import made_by

    provenance = made_by(settings or {})
    dtype = provenance.get("dtype")
    if dtype not in ("float32", "float16", "bfloat16") or provenance.get("device") != choose_device(device).type:
        return None
    return dtype


def _picture_of_recipe(recipe: Path, request: VideoRequest) -> Image.Image:
    """A picture for a recipe: the app's copy beside the clip, else the clip's frame that shows the input picture."""
    from PIL import Image

    from sgm import input_frame, open_picture, read_frames

    if recipe.suffix.lower() in (".yaml", ".yml"):
        raise UserError(f"{recipe} holds settings, but no picture: give one, as in sgm sample PICTURE --recipe …")
    stored = recipe.with_name("input.png")
    if stored.is_file() and recipe.with_name("job.json").is_file():
        return open_picture(stored, keep_alpha=request.fit == "object")
    frame, which = input_frame(read_frames(recipe)[0], request)
    echo_stderr(
        f"No picture is given: the {which} frame of {recipe.name} stands in for it; the video will differ a little."
    )
    return Image.fromarray(frame)


class _Batch:
    """Videos of several pictures, with one request. The model is loaded once, before the first video."""

    def __init__(
        self,
        request: VideoRequest,
        out: Path,
        to_file: bool,
        load: Any,
        background_model: str,
        turntable: bool,
        low_memory: bool,
        settings: dict[str, Any] | None,
    ) -> None:
        self.request, self.out, self.to_file, self.load = request, out, to_file, load
        self.background_model, self.turntable, self.low_memory = background_model, turntable, low_memory
        self.settings = settings
        self.notes: set[str] = set()

    def run(self, sources: list[tuple[str, Path | Image.Image]]) -> Iterator[bool]:
        """Make the videos of (name, picture); yields for each whether it was made: not if the picture is unusable."""
        from sgm import PictureError, differences, generate, orbit_of, write_turntable, write_video

        engine, request = None, self.request
        for stem, source in sources:
            short = stem.encode()[:200].decode(errors="ignore")  # of the 255 bytes that a name may have
            target = self.out if self.to_file else self.out / f"{short}-{request.version}-{request.seed}.mp4"
            try:
                image = self._open(source, target)
            except PictureError as error:
                echo_stderr(f"Error: {error}")
                yield False
                continue
            with progress_bar() as show:
                if engine is None:
                    start = time.perf_counter()
                    engine = self.load(on_progress=partial(show, "load"))
                    if (seconds := time.perf_counter() - start) > 5:
                        echo_stderr(f"The weights took {seconds:.0f} s to load.")
                on_step = partial(self._follow, show)
                with reuse_freed_memory():
                    clip = generate(engine, request, image, on_step, low_memory=self.low_memory)
            for sentence in differences(self.settings or {}, clip.settings):
                echo_stderr(sentence)
            written = write_new(target, partial(write_video, frames=clip.frames, fps=clip.fps, settings=clip.settings))
            typer.echo(written)
            if self.turntable:
                elevations, azimuths = orbit_of(request)
                clip_of = {"frames": clip.frames, "fps": clip.fps, "elevations": elevations, "azimuths": azimuths}
                loop = written.with_name(f"{written.stem}-turntable.webp")
                echo_stderr(f"Turntable: {write_new(loop, partial(write_turntable, **clip_of))}")
            yield True

    def _open(self, source: Path | Image.Image, target: Path) -> Image.Image:
        """Open a picture (for a fit of "object", remove its background) and print how it is fitted."""
        from sgm import describe_fit, open_picture

        request, cut = self.request, self.request.fit == "object"
        name = source.name if isinstance(source, Path) else target.name
        image = open_picture(source, keep_alpha=cut) if isinstance(source, Path) else source
        if not cut:
            echo_stderr(f"{name}: {describe_fit(image.size, *request.size, request.fit)}")
            return image
        echo_stderr(f"{name}: looking for the object")
        picture = request.family.prepare(image, request, self.background_model)
        shown = write_new(target.with_name(f"{target.stem}-input.png"), picture.frame().save)
        echo_stderr(f"{name}: cut out as {shown}")
        return picture.image

    def _follow(self, show: Any, progress: Any) -> None:
        """Show a generation's progress, and each note on memory once."""
        if progress.note and progress.note not in self.notes:
            self.notes.add(progress.note)
            echo_stderr(progress.note)
        show(f"{progress.phase} {progress.step}/{progress.total}", progress.fraction)


def _pictures(source: Path) -> list[Path]:
    """The picture itself, or the pictures of a folder by name; what is left out of it is said."""
    if not is_folder(source):
        return [source]
    from sgm import files_of

    return files_of(source, "picture", echo_stderr)


def _is_file_name(out: Path, batch: bool) -> bool:
    """Whether `--out` names one video rather than a folder."""
    if out.is_dir() or not (out.suffix or out.exists()):
        return False
    if out.suffix.lower() != ".mp4":
        raise UserError(f"--out {out} is neither a folder nor a name ending in .mp4: give one of the two.")
    if batch:
        raise UserError(f"--out {out} is one video, but a folder of pictures makes several: give a folder.")
    return True


def _plot_orbit(request: VideoRequest, path: Path) -> None:
    from sgm import draw_orbit, orbit_of

    check_writable(path.parent)
    echo_stderr(f"Orbit: {write_new(path, draw_orbit(*orbit_of(request)).save)}")
