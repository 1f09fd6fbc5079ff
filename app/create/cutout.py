"""Background removal in a thread of its own, since it takes seconds, and at the first use a download."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st
from PIL import Image, ImageOps

from app.look import plain, room
from sgm import (
    UserError,
    crop_to_object,
    cut_off_note,
    cut_out,
    cut_out_clip,
    fetched_first,
    fetched_share,
    is_preparing,
    needs_rembg,
    place_object,
)


class _CutOut:
    """Background removal: `result`, what `cut` gives, or `error`, once `ended` is set.

    cut(on_frame): on_frame(done, of) is told the frames of a clip, which are noted in `frames`.
    """

    def __init__(self, key: str, cut: Callable[[Callable[[int, int], None]], Any]) -> None:
        self.key, self.result, self.error, self.frames = key, None, "", ""
        self.ended = threading.Event()
        self.started = time.monotonic()
        threading.Thread(target=self._run, args=(cut,), name="cut-out", daemon=True).start()

    def _run(self, cut: Callable[[Callable[[int, int], None]], Any]) -> None:
        try:
            self.result = cut(self._note)
        except UserError as error:
            self.error = str(error)
        except Exception as error:  # from any layer of rembg
            self.error = f"The object cannot be cut out ({type(error).__name__}: {error}). Give a picture whose "
            self.error += "background is transparent."
        finally:
            self.ended.set()

    def _note(self, done: int, of: int) -> None:
        self.frames = f" · frame {done} of {of}"


def show_object(key: str, image: Image.Image, name: str, width: int, height: int, share: float) -> Image.Image | None:
    """Show a picture's object as the model will see it. Returns the cut-out as RGBA, None while there is none.

    share: the object's longer side over the frame's shorter one.
    """

    def cut(on_frame: Callable[[int, int], None]) -> Image.Image:
        item = cut_out(image)
        item = item.crop(item.getchannel("A").getbbox())
        # A transparent edge marks the picture as cut out for `sgm.cut_out`, even if the object fills it.
        return ImageOps.expand(item, 1, (255, 255, 255, 0))

    item: Image.Image | None = _result(key, cut, lambda: fetched_first(image))
    if item is None:
        return None
    try:
        frame = place_object(item, width, height, share)
    except UserError as error:
        st.error(plain(str(error)), icon=":material/content_cut:")
        return None
    with room("cut_out", frame.size):
        st.image(frame, width="stretch", output_format="PNG", alt=f"The object of {name}")
    st.caption(f"The model sees exactly this: the object on white, {width}×{height}.", text_alignment="center")
    return item


def object_of_clip(key: str, frames: Sequence[Image.Image]) -> tuple[list[Image.Image], str] | None:
    """A clip's object, cut out of all frames, and a note on what is cut off; None while there is none.

    Meanwhile the progress is shown, or what is wrong.
    """

    def cut(on_frame: Callable[[int, int], None]) -> tuple[list[Image.Image], str]:
        items = cut_out_clip(frames, on_frame=on_frame)
        return crop_to_object(items), cut_off_note(items)

    return _result(key, cut, lambda: fetched_first(frames[0]) if needs_rembg(frames) else "")


def _result(key: str, cut: Callable[[Callable[[int, int], None]], Any], fetched: Callable[[], str]) -> Any:
    """What `cut` gives, in a thread of its own; None while there is none, and its progress or error is shown.

    fetched: a sentence on what has to be fetched first, or "".
    """
    work: _CutOut | None = st.session_state.get("cutting")
    if work is None or work.key != key:
        note = fetched()
        if note:
            st.info(f"The object is to stand alone, on white. {plain(note)}", icon=":material/download:")
            if not st.button("Fetch it and cut the object out", icon=":material/content_cut:"):
                st.caption("Or give a picture whose background is transparent already.")
                return None
        work = st.session_state["cutting"] = _CutOut(key, cut)
        work.ended.wait(0.5)  # a picture with transparency takes no time
    if not work.ended.is_set():
        _watch()
        return None
    if work.result is None:
        st.error(plain(work.error), icon=":material/content_cut:")
        st.button("Try again", on_click=lambda: st.session_state.pop("cutting"))
        return None
    return work.result


@st.fragment(run_every=1.0)
def _watch() -> None:
    """Show the progress of background removal; when it ends, the whole page is redrawn."""
    work: _CutOut | None = st.session_state.get("cutting")
    if work is None or work.ended.is_set():
        st.rerun()
    share = fetched_share()
    if share is None:
        seconds = f"{time.monotonic() - work.started:.0f} s"
        preparing = f"Preparing rembg, once in a new environment · {seconds}"
        st.progress(0.0, preparing if is_preparing() else f"Cutting the object out{work.frames} · {seconds}")
    else:
        st.progress(share, f"Fetching rembg's model · {share:.0%}")
