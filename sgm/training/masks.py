"""Masks of pictures' objects, for scenes with depth: `python -m sgm.training.masks PICTURES MASKS`."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from sgm.conditioning.saliency import saliency
from sgm.errors import UserError
from sgm.media.image import open_picture
from sgm.media.kinds import files_of
from sgm.paths import check_writable, replacing, user_path


def write_masks(pictures: str | Path, masks: str | Path) -> list[Path]:
    """Write the mask of each picture's object as MASKS/NAME.png; those that are there stay.

    Look at them, and delete those that are wrong: a picture without a mask is one without an object before the rest.
    Pictures that cannot be read are named on stderr. Returns the masks' paths. Raises UserError as `files_of` does.
    """
    folder = user_path(masks)
    check_writable(folder)

    def say(line: object) -> None:
        print(line, file=sys.stderr, flush=True)

    paths = files_of(user_path(pictures), "picture", say, deep=True)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, path in enumerate(paths, 1):
        target = folder / f"{path.stem}.png"
        try:
            if not target.exists():
                mask = Image.fromarray(saliency(open_picture(path)))
                with replacing(target) as unfinished:
                    mask.save(unfinished)
            written.append(target)
        except UserError as error:
            say(error)
        if number % 20 == 0 or number == len(paths):
            say(f"{number} of {len(paths)}")
    return written


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        write_masks(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
