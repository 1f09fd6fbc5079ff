"""The last picture of a clip between two pictures: its options, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgm.cli.console import echo_stderr, path_option
from sgm.cli.recipe import stored_picture
from sgm.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from sgm import VideoRequest

Last = Annotated[Path | None, path_option("The picture at which the video ends.")]
Loop = Annotated[bool, typer.Option("--loop", help="End where the video began, so that it can be played in a loop.")]


def with_ends(fields: dict[str, Any], last: Path | None, loop: bool) -> dict[str, Any]:
    """The fields that were given, with the end that the options say. Raises UserError where these contradict."""
    if last is not None and loop:
        raise UserError("--last ends at another picture, --loop where the video began: give one of the two.")
    ends = "loop" if loop else "last" if last is not None else fields.get("ends")
    if ends != fields.get("ends", ends):
        raise UserError(f"--ends {fields['ends']} contradicts --{ends}: leave one of the two out.")
    return fields if ends is None else {**fields, "ends": ends}


def last_picture(request: VideoRequest, last: Path | None, recipe: Path | None) -> Image.Image | None:
    """The last picture of a request that takes one, and how it is fitted, printed.

    Unless it is given, the page's copy beside the recipe's clip, else that clip's last frame. Raises UserError where
    there is none, PictureError for one that cannot be read.
    """
    from sgm import describe_fit, open_picture

    if not request.takes_last:
        return None
    source = last or (recipe and stored_picture(recipe, "last.png"))
    if source is None:
        return _last_frame(recipe)
    picture = open_picture(source, keep_alpha=request.fit == "object")
    echo_stderr(f"{source.name}, the last picture: {describe_fit(picture.size, *request.size, request.fit)}")
    return picture


def _last_frame(recipe: Path | None) -> Image.Image:
    """The last frame of a recipe's clip. Raises UserError where there is no clip, or one that ends elsewhere."""
    from PIL import Image

    from sgm import open_video, request_of
    from sgm.recipe import recipe_text

    if recipe is not None and recipe_text(recipe) is None:
        with open_video(recipe) as video:
            if request_of(video.settings or {}).takes_last:
                echo_stderr(f"No last picture is given: the last frame of {recipe.name} stands in for it.")
                return Image.fromarray(video[-1])
    raise UserError("This video ends at a last picture: give it with --last, or say --loop.")


def tell_loop(request: VideoRequest, first: Image.Image, last: Image.Image | None, name: str) -> None:
    """Print that a picture is the last one, too, where that is so."""
    from sgm import checked_ends

    if last is not None and not checked_ends(request, first, last).takes_last:
        echo_stderr(f"{name}: the last picture is the same one, so the video is a loop.")
