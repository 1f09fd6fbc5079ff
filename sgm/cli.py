"""The command line: `sgm sample`, `models`, `download`, `convert`, `app` and `train`.

Every command imports what it needs itself, so that `sgm --help` answers at once. Exit codes: 0; 1, it failed; 2, it was
asked wrongly; 130, stopped by Ctrl-C. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import atexit
import gc
import io
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sgm import __version__
from sgm.errors import UserError
from sgm.versions import DEFAULT_VERSION, VERSIONS, bundle, checkpoint_folders

if TYPE_CHECKING:
    from sgm import VideoRequest

PICTURE_SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

cli = typer.Typer(
    help="Turn pictures into videos on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain errors: one line that can be read, copied and searched for
    pretty_exceptions_enable=False,
)
tell = partial(typer.echo, err=True)


def _version(wanted: bool) -> None:
    """Print the program's version and leave: the callback of `--version`."""
    if wanted:
        typer.echo(f"sgm-video {__version__}")
        raise typer.Exit


@cli.callback()
def _prepare(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and leave.")
    ] = False,
) -> None:
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot spell must not end a finished run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _told(code: int = 1) -> Iterator[None]:
    """Say an error that is meant for the user as its one sentence, and leave with `code`."""
    try:
        yield
    except UserError as error:
        tell(f"Error: {error}")
        raise typer.Exit(code) from None
    except KeyboardInterrupt:
        tell("Stopped.")
        raise typer.Exit(130) from None


@contextmanager
def _importing() -> Iterator[None]:
    """For torch's import. What it makes stays, so looking through it for garbage, now or later, is time lost.

    Ctrl-C waits for its end, a moment later: in its midst it can abort the process.
    """
    if "torch" in sys.modules:
        yield
        return
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True

    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:
        signal.signal(signal.SIGINT, press)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        if handled:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt


@cli.command()
def sample(
    picture: Annotated[Path, typer.Argument(help="A picture, or a folder of pictures: each becomes a video.")],
    version: Annotated[str, typer.Option(help="Model version; `sgm models` lists them.")] = DEFAULT_VERSION,
    out: Annotated[
        Path, typer.Option(help="A folder, or a name ending in .mp4. A taken name gets -2, -3, ... at its end.")
    ] = Path("outputs"),
    seed: Annotated[int | None, typer.Option(help="One seed is one video.")] = None,
    motion_bucket: Annotated[int | None, typer.Option(help="How much moves: 0 to 511; 127 is usual.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames a second, of the file and as told to the model.")] = None,
    frames: Annotated[int | None, typer.Option(help="Number of frames.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps: more are finer and slower.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    fit: Annotated[
        str | None, typer.Option(help="crop the picture to that shape, pad it, or cut the object out.")
    ] = None,
    camera: Annotated[str | None, typer.Option(help="Camera move, svd_tiny only; `sgm models` lists them.")] = None,
    elevation: Annotated[float | None, typer.Option(help="Camera's height in degrees, sv3d_p only.")] = None,
    orbit: Annotated[str | None, typer.Option(help="same elevation all around, or dynamic; sv3d_p only.")] = None,
    elevations: Annotated[str | None, typer.Option(help="One a frame, as 10,12.5,...; sv3d_p only.")] = None,
    azimuths: Annotated[str | None, typer.Option(help="One a frame, rising; the last is the input view.")] = None,
    image_frame_ratio: Annotated[float | None, typer.Option(help="Share of the frame for the object, SV3D.")] = None,
    background_model: Annotated[str, typer.Option(help="rembg's model that removes the background, SV3D.")] = "u2net",
    turntable: Annotated[bool, typer.Option("--turntable", help="Also write the orbit as an endless .webp.")] = False,
    orbit_plot: Annotated[Path | None, typer.Option(help="Write a picture of the orbit there, a .png.")] = None,
    cond_aug: Annotated[float | None, typer.Option(help="Noise on the picture: more drifts further from it.")] = None,
    sampler: Annotated[str | None, typer.Option(help="`sgm models` lists them.")] = None,
    guider: Annotated[str | None, typer.Option(help="`sgm models` lists them.")] = None,
    min_guidance: Annotated[float | None, typer.Option(help="Guidance of the first frame.")] = None,
    max_guidance: Annotated[float | None, typer.Option(help="Largest guidance.")] = None,
    decode_chunk: Annotated[int | None, typer.Option(help="Frames decoded at once: fewer need less memory.")] = None,
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
    """Turn a picture, or each picture of a folder, into a video.

    What is not given is the version's own default. Prints the path of each video.
    """
    choices: dict[str, Any] = {
        "version": version,
        "seed": seed,
        "motion_bucket": motion_bucket,
        "fps": fps,
        "frames": frames,
        "steps": steps,
        "height": height,
        "width": width,
        "fit": fit,
        "camera": camera,
        "elevation": elevation,
        "orbit": orbit or ("list" if elevations or azimuths else None),
        "image_frame_ratio": image_frame_ratio,
        "cond_aug": cond_aug,
        "sampler": sampler,
        "guider": guider,
        "min_guidance": min_guidance,
        "max_guidance": max_guidance,
        "decode_chunk": decode_chunk,
    }
    with _told(code=2):
        to_file = _is_file_name(out, batch=picture.is_dir())
        pictures = _pictures(picture)
        choices["elevations"] = _numbers("--elevations", elevations)
        choices["azimuths"] = _numbers("--azimuths", azimuths)
        with _importing():
            from sgm import VideoRequest

        request = VideoRequest(**{name: value for name, value in choices.items() if value is not None})
    with _told():
        from sgm import load_engine

        _check_place(out.parent if to_file else out)
        load = partial(load_engine, request.version, checkpoint=checkpoint, base=base, device=device, dtype=dtype)
        if orbit_plot is not None:
            _plot(request, orbit_plot)
        extras = background_model, turntable, low_memory
        failed = sum(not done for done in _sample(request, pictures, out, to_file, load, *extras))
    if failed and len(pictures) > 1:
        tell(f"{failed} of {len(pictures)} pictures failed.")
    raise typer.Exit(1 if failed else 0)


@cli.command()
def models() -> None:
    """List the model versions, which of them are installed, and the names that `sgm sample` takes."""
    with _told():
        with _importing():
            from sgm import CAMERA_MOVES, GUIDERS, SAMPLERS, version_status

        typer.echo(f"{'version':<22}{'frames':>6}  {'size':<10}{'steps':>5}  weights")
        pages: dict[str, list[str]] = {}  # licence and page -> the versions that are missing
        for version in VERSIONS.values():
            status = version_status(version.name)
            size = f"{version.width}x{version.height}"
            place = status.place or status.command or status.problem
            typer.echo(
                f"{version.name:<22}{version.frames:>6}  {size:<10}{version.steps:>5}  {status.state:<8} {place}"
            )
            if status.path and status.problem:
                typer.echo(f"{'':<47}{status.problem}{f' Run `{status.command}`.' if status.command else ''}")
            if not status.path and status.page:
                pages.setdefault(f"{status.page} ({status.licence})", []).append(version.name)
        if pages:
            typer.echo("\nAccept the licence of what is missing before you download it:")
            for page, names in pages.items():
                typer.echo(f"  {', '.join(names):<27} {page}")
            typer.echo(f"Files that you have already belong into {checkpoint_folders()[0]}")
        typer.echo(f"\nsamplers: {', '.join(SAMPLERS)}\nguiders:  {', '.join(GUIDERS)}")
        typer.echo(f"cameras:  {', '.join(CAMERA_MOVES)}")


@cli.command()
def download(
    version: Annotated[str, typer.Argument(help="Model version; `sgm models` lists them.")],
    to: Annotated[Path | None, typer.Option(help="Folder. Unless given, where weights are looked for.")] = None,
) -> None:
    """Bring a version's weights from the Hugging Face hub; goes on where an earlier download broke off."""
    with _told(code=2):
        if version not in VERSIONS:
            raise UserError(f"Version '{version}' is unknown; choose one of {', '.join(VERSIONS)}.")
    with _told():
        with _importing():
            from sgm import download_weights

        tell(f"Licence: {VERSIONS[version].licence}")
        with _shares() as show:
            path = download_weights(version, to, on_progress=show)
        base = VERSIONS[version].base
        if base and VERSIONS[base].checkpoint_path is None:
            tell(f"{version} is laid over {base}, which is missing: run `sgm download {base}`, too.")
        typer.echo(path)


@cli.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A .safetensors or .ckpt file, or a diffusers folder.")],
    target: Annotated[Path, typer.Argument(help="A new name: ending in .safetensors, or a folder.")],
    to: Annotated[str, typer.Option(help="sgm: one official file; diffusers: a folder.")] = "sgm",
    dtype: Annotated[str | None, typer.Option(help="fp16, bf16 or fp32. Unless given, as it is stored.")] = None,
    version: Annotated[str | None, typer.Option(help="Whose weights they are. Unless given, recognised.")] = None,
    base: Annotated[Path | None, typer.Option(help="What a network alone is laid over.")] = None,
    config: Annotated[Path | None, typer.Option(help="The YAML of a model that is no known version.")] = None,
) -> None:
    """Write weights in another format or precision, one tensor in memory at a time."""
    with _told():
        with _importing():
            from sgm import convert_weights

        with _shares() as show:
            path = convert_weights(
                source,
                target,
                to,
                dtype,
                version=version,
                base=base,
                config=config,
                on_progress=partial(show, "convert"),
            )
        typer.echo(path)


@cli.command()
def app(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8501,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser.")] = False,
) -> None:
    """Open the page in your browser. It can be reached from this machine only."""
    with _told():
        if _is_taken(port):
            raise UserError(f"Port {port} is taken by another program: choose another with --port {port % 65535 + 1}.")
        from streamlit.web.cli import main as streamlit

        root = bundle()
        # `import app` must work here and in processes that the page starts.
        sys.path.insert(0, str(root))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
        flags = [*_streamlit_flags(root), f"--server.port={port}", f"--server.headless={str(no_browser).lower()}"]
        flags.append("--logger.hideWelcomeMessage=true")  # with it go Streamlit's own offers, on the page too
        typer.echo(f"The page is at http://127.0.0.1:{port}; Ctrl-C ends it.")
        streamlit(["run", str(root / "app" / "main.py"), *flags], standalone_mode=False)


@cli.command()
def train(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG|KEY=VALUE",
            help="YAMLs such as configs/training/svd_finetune.yaml, trained one after the other, and values to change.",
            show_default=False,
        ),
    ],
) -> None:
    """Train a model; goes on from the last checkpoint when there is one."""
    overrides = [text for text in arguments if "=" in text]
    configs = [Path(text) for text in arguments if "=" not in text]
    with _told(code=2):
        if not configs:
            raise UserError("There is no config: give a YAML, such as those in configs/training/.")
        for config in configs:
            if not config.is_file():
                raise UserError(
                    f"{config} is neither a file nor of the form key.subkey=value: give training configs, such as those"
                    " in configs/training/, and values to change in them."
                )
        for override in overrides:
            if override.startswith("="):
                raise UserError(f"{override!r} is no override: write it as key.subkey=value.")
    if len(configs) > 1:  # each in a process of its own: what trains on several cards starts its own command again
        for config in configs:
            command = [sys.executable, "-m", "sgm.cli", "train", str(config), *overrides]
            if code := subprocess.run(command).returncode:
                raise typer.Exit(code)
        return
    (config,) = configs
    with _told():
        try:
            from sgm.training import run

            run(config, overrides)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in ("lightning", "cv2"):
                raise
            raise UserError(
                f'Training needs {package}, which is not installed: run `python -m pip install -e ".[train]"` first.'
            ) from None


def _pictures(source: Path) -> list[Path]:
    """The picture itself, or the pictures of a folder by name."""
    if not source.is_dir():
        return [source]
    found = [p for p in source.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith(".")]
    if not found:
        raise UserError(f"{source} holds no pictures: expected files ending in {', '.join(PICTURE_SUFFIXES)}.")
    return sorted(found)


def _is_file_name(out: Path, batch: bool) -> bool:
    """Whether `--out` names one video rather than a folder."""
    if out.is_dir() or not (out.suffix or out.exists()):
        return False
    if out.suffix.lower() != ".mp4":
        raise UserError(f"--out {out} is neither a folder nor a name ending in .mp4: give one of the two.")
    if batch:
        raise UserError(f"--out {out} is one video, but a folder of pictures makes several: give a folder.")
    return True


def _check_place(folder: Path) -> None:
    """Refuse a folder that cannot be written before the work rather than after it."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"Nothing can be written to {folder}: choose another place with --out.")


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers of an option such as "0,12.5,30"."""
    try:
        return None if text is None else tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UserError(f"{option} must be numbers with commas between, as in 0,12.5,30; got {text!r}.") from None


def _plot(request: VideoRequest, path: Path) -> None:
    from sgm import draw_orbit, orbit_of

    if not VERSIONS[request.version].sv3d or path.suffix.lower() != ".png":
        raise UserError(f"--orbit-plot {path} needs an SV3D version and a name ending in .png.")
    _check_place(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    path = _free(path)
    draw_orbit(*orbit_of(request)).save(path)
    tell(f"Orbit: {path}")


def _sample(
    request: VideoRequest,
    pictures: list[Path],
    out: Path,
    to_file: bool,
    load: Any,
    background_model: str,
    turntable: bool,
    low_memory: bool,
) -> Iterator[bool]:
    """One video a picture; False for a picture that cannot be read. The model is loaded once, when it is needed."""
    from sgm import (
        PictureError,
        cut_out,
        describe_fit,
        generate,
        open_picture,
        orbit_of,
        prepare_picture,
        write_turntable,
        write_video,
    )

    engine, notes = None, []
    cut = request.fit == "object"
    for path in pictures:
        target = out if to_file else out / f"{path.stem}-{request.version}-{request.seed}.mp4"
        try:
            image = open_picture(path, keep_alpha=cut)
            if cut:
                tell(f"{path.name}: looking for the object")
                image = cut_out(image, background_model)
                target.parent.mkdir(parents=True, exist_ok=True)
                shown = _free(target.with_name(f"{target.stem}-input.png"))
                prepare_picture(image, request).save(shown)
        except PictureError as error:
            tell(f"Error: {error}")
            yield False
            continue
        told = f"cut out as {shown}" if cut else describe_fit(image.size, *request.size, str(request.fit))
        tell(f"{path.name}: {told}")
        with _shares() as show:
            if engine is None:
                start = time.perf_counter()
                engine = load(on_progress=partial(show, "load"))
                if (took := time.perf_counter() - start) > 5:
                    tell(f"The weights took {took:.0f} s to load.")
            clip = generate(
                engine,
                request,
                image,
                on_step=partial(_follow, show, notes),
                low_memory=low_memory,
            )
        written = write_video(_free(target), clip.frames, clip.fps, clip.settings)
        typer.echo(written)
        if turntable:
            loop = written.with_name(f"{written.stem}-turntable.webp")
            tell(f"Turntable: {write_turntable(_free(loop), clip.frames, clip.fps, *orbit_of(request))}")
        yield True


def _follow(show: Any, notes: list[str], at: Any) -> None:
    """Show a generation's progress, and once each what it says about memory."""
    if at.note and at.note not in notes:
        notes.append(at.note)
        tell(at.note)
    show(f"{at.phase} {at.step}/{at.total}", at.fraction)


@contextmanager
def _shares() -> Iterator[Any]:
    """A progress bar on stderr; gives the function that takes what is done and its share."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description:<13}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda phase, share: bar.update(task, description=phase, completed=share)


def _free(path: Path) -> Path:
    """`path`, or the same with -2, -3, ... before its suffix: nothing that exists is overwritten."""
    others = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(2))
    return next(p for p in itertools.chain([path], others) if not p.exists())


def _streamlit_flags(root: Path) -> list[str]:
    """The values of .streamlit/config.toml as flags, since Streamlit looks for that file in the current folder only."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    settings = tomllib.loads((root / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    values = ((f"{section}.{key}", value) for section, pairs in settings.items() for key, value in pairs.items())
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}" for name, value in values]


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    """The console script `sgm`. What is done ends at once: taking torch apart first takes up to a second."""
    try:
        cli()
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int) or "torch" not in sys.modules or threading.active_count() > 1:
            raise
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
