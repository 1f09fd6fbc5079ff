"""`sgm sample`: pictures to videos. Its options are the fields of a request, from their table."""

from __future__ import annotations

import difflib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgm.cli.batch import Batch
from sgm.cli.console import echo_stderr, errors_as_sentences, path_argument, path_option
from sgm.cli.ends import Last, Loop, last_picture, with_ends
from sgm.cli.options import (
    BackgroundModel,
    Base,
    Checkpoint,
    Device,
    Devices,
    Dtype,
    Gpus,
    LowMemory,
    ModelVersion,
    NoWatermark,
    Ray,
    RayActors,
    RayCommand,
    Recipe,
    Safety,
)
from sgm.cli.recipe import stored_picture
from sgm.cli.spread import Spread
from sgm.errors import UserError
from sgm.paths import check_writable, exists, is_folder, write_new
from sgm.process import importing_torch
from sgm.versions import DEFAULT_VERSION, VIEW_VERSIONS

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from sgm import Field, Smoothing, VideoRequest
    from sgm.cli.batch import Source


class SampleCommand(RayCommand):
    """A command with an option for each field of a request, including those of samplers and guiders."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move the fields' options from `args` into `ctx.meta["fields"]`, and parse the others as usual.

        `ctx.meta["loras"]`: the files that --lora names, by their names in the field.
        """
        fields = _fields()
        rest, values, words = [], {}, iter(args)
        loras: dict[str, Path] = {}
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
                if field.name == "lora":
                    argument = _with_lora(values.get("lora", ""), str(argument), loras)
                values[field.name] = field.parse(str(argument))
            except UserError as error:
                raise typer.BadParameter(str(error), ctx=ctx, param_hint=f"'{option}'") from None
        ctx.meta["fields"], ctx.meta["loras"] = values, loras
        try:
            return super().parse_args(ctx, rest)
        except Exception as error:
            if hasattr(error, "possibilities"):  # of an unknown option, for which only those of the others are known
                known = [*fields, *(option for parameter in self.params for option in parameter.opts)]
                vars(error)["possibilities"] = difflib.get_close_matches(vars(error)["option_name"], known, n=1)
            raise

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The fields' part of the help."""
        with formatter.section("Settings of the video (unless given, the version's own)"):
            formatter.write_dl([(f"{name} {_metavar(field)}", _about(field)) for name, field in _fields().items()])


def _fields() -> dict[str, Field]:
    """Option -> field."""
    with importing_torch():
        from sgm import all_fields

    return {f"--{name.replace('_', '-')}": field for name, field in all_fields().items()}


def _with_lora(before: str, argument: str, files: dict[str, Path]) -> str:
    """The field's text with one more --lora, whose file is noted. Raises UserError for two files of one name."""
    from sgm.loras import lora_argument

    for text, path in map(lora_argument, argument.split(" + ")):
        name = text.rpartition(":")[0]
        path = path and path.absolute()
        if path is not None and files.setdefault(name, path) != path:
            raise UserError(f"{path} and {files[name]} have the same name: rename one of the two.")
        before = " + ".join(filter(None, (before, text)))
    return before


def _metavar(field: Field) -> str:
    """An option's metavariable: its choices or its range."""
    if field.name == "lora":
        return "<FILE[:STRENGTH]>"
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
        path_argument("A picture, or a folder of pictures: each becomes a video. SV4D: a clip.", show_default=False),
    ] = None,
    version: ModelVersion = None,
    recipe: Recipe = None,
    last: Last = None,
    loop: Loop = False,
    out: Annotated[
        Path, path_option("A folder, or a name ending in .mp4. A taken name gets -2, -3, ... at its end.")
    ] = Path("outputs"),
    background_model: BackgroundModel = "u2net",
    smooth: Annotated[
        int | None,
        typer.Option(metavar="[2|4]", help="As many frames for each that the model makes: the others go in between."),
    ] = None,
    slow_motion: Annotated[
        bool | None, typer.Option(help="Play the frames of --smooth (unless given, 2) at the model's frame rate.")
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Take the pictures in the folder's folders, too; --out gets the same.")
    ] = False,
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Make no video that is there already, by its recipe and its picture."),
    ] = False,
    turntable: Annotated[bool, typer.Option("--turntable", help="Also write the orbit as an endless .webp.")] = False,
    orbit_plot: Annotated[Path | None, path_option("Write a picture of the orbit there, a .png.")] = None,
    no_watermark: NoWatermark = False,
    safety: Safety = "off",
    low_memory: LowMemory = False,
    device: Device = None,
    devices: Devices = None,
    gpus: Gpus = 1,
    ray: Ray = None,
    ray_actors: RayActors = None,
    dtype: Dtype = None,
    checkpoint: Checkpoint = None,
    base: Base = None,
) -> None:
    """Turn a picture, or each picture of a folder, into a video. Prints the path of each video.

    With --recipe, the settings of a video that was made here; those given beside it override. Without a picture, that
    video's own frame stands in for it. With --last, the video ends at a second picture; a folder's videos all do.

    SV4D's versions take a clip, a video, an animation or a folder of its frames, and make a folder of clips: the same
    motion from other sides.
    """
    from sgm import (
        Cluster,
        ViewsRequest,
        check_credentials,
        check_safety,
        check_weights,
        choose_device,
        choose_devices,
        load_engine,
        video_encoder,
        workers_on,
    )
    from sgm.cli.views import clip_asked, sample_views

    with errors_as_sentences(code=2):
        check_credentials()
        check_safety(safety)
        if picture is None and recipe is None:
            raise UserError("Missing argument 'PICTURE': give a picture, or a folder of pictures.")
        batch = picture is not None and is_folder(picture)
        to_file = _is_file_name(out, batch)
        start, settings = starting_point(recipe)
        request = start.replace(
            **chosen(start.version if version is None else version, with_ends(ctx.meta["fields"], last, loop))
        )
        smoothing = _smoothing(smooth, slow_motion, settings, request)
        if turntable and not request.family.orbits:
            raise UserError(f"--turntable needs an orbit, which {request.version} does not make: take an SV3D version.")
        if orbit_plot and not (request.family.orbits and orbit_plot.suffix.lower() == ".png"):
            raise UserError(f"--orbit-plot {orbit_plot} needs an SV3D version and a name ending in .png.")
        for note in request.notes:
            echo_stderr(note)
        if sum(option is not None for option in (device, devices, ray)) > 1:
            raise UserError(
                "--device is where all are made, --devices and --ray over which they are spread: give one of them."
            )
        if ray is not None and gpus > 1:
            raise UserError("--gpus are of this machine, --ray is a cluster's, a GPU for each actor: give one.")
        if isinstance(request, ViewsRequest) and (devices is not None or ray is not None):
            raise UserError(
                "--devices and --ray spread many clips, and these views are of one, which --gpus 2 makes faster: take "
                "--device, or give the clips to `sgm app --devices …` or `--ray …`."
            )
        chosen_devices = choose_devices(devices, gpus) if devices is not None else [choose_device(device)]
        kind = dtype or dtype_of_recipe(settings, chosen_devices[0])
        if isinstance(request, ViewsRequest) and (recursive or skip_existing):
            raise UserError(f"{request.version} makes one clip's views: leave out --recursive and --skip-existing.")
        if recursive and not batch:
            raise UserError("--recursive is for a folder of pictures: name the folder.")
        clip = clip_asked(request, picture, out) if isinstance(request, ViewsRequest) else None
        sources = [] if clip else _sources(picture, recipe, request, out if recursive else None)
        goal = last_picture(request, last, recipe)
    if clip and isinstance(request, ViewsRequest):
        load = partial(load_engine, device=device, dtype=kind, gpus=gpus, low_memory=low_memory)
        weights = {"checkpoint": checkpoint, "base": base, "loras": ctx.meta["loras"]}
        marks = not no_watermark, safety
        sample_views(request, clip, out, *marks, background_model, low_memory, weights, load)
        return
    # What can be known before the work, in the order of its cost.
    marks = not no_watermark, safety
    work = Batch(request, out, to_file, background_model, turntable, low_memory, settings, smoothing, goal, *marks)
    work.check_places(sources)
    if orbit_plot is not None:
        check_writable(orbit_plot.parent)
        exists(orbit_plot)
    if skip_existing:
        sources = work.left(sources, checkpoint.name if checkpoint else "")
        if not sources:
            raise typer.Exit(0)
    video_encoder()
    weights: dict[str, Any] = {"checkpoint": checkpoint, "base": base, "loras": ctx.meta["loras"]}
    unfilled = None  # the nodes of a cluster have their own
    if ray is None:
        unfilled = check_weights(request.version, **weights, lora=request.lora)
    if orbit_plot is not None:
        _plot_orbit(request, orbit_plot)
    load = partial(load_engine, **weights, dtype=kind, gpus=gpus, low_memory=low_memory)
    if ray is not None:
        paths = {"loras": ctx.meta["loras"]} | {n: p.absolute() for n, p in weights.items() if isinstance(p, Path)}
        echo_stderr("Connecting to Ray.")
        cluster = Cluster(ray, ray_actors, {**paths, "dtype": dtype})
        ctx.call_on_close(cluster.close)
        made = Spread(work, cluster.workers, len(sources)).run(sources)
    elif devices is None or len(chosen_devices[: len(sources)]) == 1:
        filled = partial(load, request.version, device=str(chosen_devices[0]), unfilled=unfilled)
        made = work.run(sources, filled)
    else:
        made = Spread(work, workers_on(chosen_devices, load), len(sources)).run(sources)
    failed = sum(not one for one in made)
    if failed and len(sources) > 1:
        echo_stderr(f"{failed} of {len(sources)} pictures failed.")
    raise typer.Exit(1 if failed else 0)


def _smoothing(
    times: int | None, slow: bool | None, settings: dict[str, Any] | None, request: VideoRequest
) -> Smoothing:
    """What is asked of --smooth and --slow-motion, else the recipe's. Raises UserError for what cannot be."""
    from sgm import Smoothing

    made = Smoothing.of(settings or {})
    if times == 1 and slow:
        raise UserError("--slow-motion needs frames to go in between: take --smooth 2 or 4, or leave it out.")
    slow = made.slow and times != 1 if slow is None else slow
    times = (2 if slow and made.times == 1 else made.times) if times is None else times
    smoothing = Smoothing.of({"smooth": times, "slow_motion": slow})
    if times > 1 and request.version in VIEW_VERSIONS:
        raise UserError(f"--smooth is for a clip of a picture; {request.version} makes views of a clip: leave it out.")
    smoothing.check(request.frames, *request.size)
    return smoothing


def _sources(
    picture: Path | None, recipe: Path | None, request: VideoRequest, recursive_out: Path | None
) -> list[Source]:
    """The pictures, each with the name that its video gets.

    recursive_out: where the videos go, if the folders of a folder are looked at, too: but for that one among them.
    """
    if picture is not None and recursive_out is not None:
        out = recursive_out.resolve()
        found = pictures_of(picture, deep=True)
        if out != picture.resolve():
            found = [path for path in found if out not in path.resolve().parents]
        return [(path.relative_to(picture).with_suffix("").as_posix(), path) for path in found]
    if picture is not None:
        return [(path.stem, path) for path in pictures_of(picture)]
    assert recipe is not None
    return [(recipe.stem, _picture_of_recipe(recipe, request))]


def starting_point(recipe: Path | None) -> tuple[VideoRequest, dict[str, Any] | None]:
    """The request whose values options replace, and the recipe's settings where it is a recipe's."""
    with importing_torch():
        from sgm import VideoRequest, read_recipe, request_of

    if recipe is None:
        return VideoRequest(DEFAULT_VERSION), None
    settings = read_recipe(recipe)
    return request_of(settings), settings


def chosen(version: str | None, choices: dict[str, Any]) -> dict[str, Any]:
    """What options say: the values of fields, and the version if it is given."""
    if "orbit" not in choices and version not in VIEW_VERSIONS and ("elevations" in choices or "azimuths" in choices):
        choices = {**choices, "orbit": "list"}
    if "sampler" not in choices and "ends" in choices:
        choices = {**choices, "sampler": "bounded"}
    if "schedule" not in choices and "sigmas" in choices:
        choices = {**choices, "schedule": "custom"}
    return choices if version is None else {**choices, "version": version}


def dtype_of_recipe(settings: dict[str, Any] | None, device: torch.device) -> str | None:
    """The dtype of a recipe, if it was made on the same type of device."""
    from sgm.recipe import made_by

    provenance = made_by(settings or {})
    dtype = provenance.get("dtype")
    if dtype not in ("float32", "float16", "bfloat16") or provenance.get("device") != device.type:
        return None
    return dtype


def _picture_of_recipe(recipe: Path, request: VideoRequest) -> Image.Image:
    """A picture for a recipe: the app's copy beside the clip, else the clip's frame that shows the input picture."""
    from PIL import Image

    from sgm import Smoothing, input_frame, open_picture, open_video, request_of
    from sgm.recipe import recipe_text

    if recipe_text(recipe) is not None:
        raise UserError(f"{recipe} holds settings, but no picture: give one, as in sgm sample PICTURE --recipe …")
    if stored := stored_picture(recipe):
        return open_picture(stored, keep_alpha=request.fit == "object")
    with open_video(recipe) as video:
        made = video.settings or {}  # as made, without what is changed now
        frame, which = input_frame(video, request_of(made), Smoothing.of(made).times)
    echo_stderr(
        f"No picture is given: the {which} frame of {recipe.name} stands in for it; the video will differ a little."
    )
    return Image.fromarray(frame)


def pictures_of(source: Path, deep: bool = False) -> list[Path]:
    """The picture itself, or the pictures of a folder by name; what is left out of it is said.

    deep: with the folders inside.
    """
    if not is_folder(source):
        return [source]
    from sgm import files_of

    return files_of(source, "picture", echo_stderr, deep=deep)


def _is_file_name(out: Path, batch: bool) -> bool:
    """Whether `--out` names one video rather than a folder."""
    if is_folder(out) or not (out.suffix or exists(out)):
        return False
    if out.suffix.lower() != ".mp4":
        raise UserError(f"--out {out} is neither a folder nor a name ending in .mp4: give one of the two.")
    if batch:
        raise UserError(f"--out {out} is one video, but a folder of pictures makes several: give a folder.")
    return True


def _plot_orbit(request: VideoRequest, path: Path) -> None:
    from sgm import draw_orbit, orbit_of

    echo_stderr(f"Orbit: {write_new(path, draw_orbit(*orbit_of(request)).save)}")
