"""Background removal in a thread of its own, since it takes seconds, and at the first use a download."""

from __future__ import annotations

import threading
import time

import streamlit as st
from PIL import Image, ImageOps

from app.look import plain
from sgm import UserError, cut_out, fetched_first, fetched_share, place_object


class _CutOut:
    """Background removal of one picture: `result`, RGBA, or `error`, once `ended` is set."""

    def __init__(self, key: str, image: Image.Image) -> None:
        self.key = key
        self.result: Image.Image | None = None
        self.error = ""
        self.ended = threading.Event()
        self.started = time.monotonic()
        threading.Thread(target=self._run, args=(image,), name="cut-out", daemon=True).start()

    def _run(self, image: Image.Image) -> None:
        try:
            item = cut_out(image)
            item = item.crop(item.getchannel("A").getbbox())
            # A transparent edge marks the picture as cut out for `sgm.cut_out`, even if the object fills it.
            self.result = ImageOps.expand(item, 1, (255, 255, 255, 0))
        except UserError as error:
            self.error = str(error)
        except Exception as error:  # from any layer of rembg
            self.error = f"The object cannot be cut out ({type(error).__name__}: {error}). Give a picture whose "
            self.error += "background is transparent."
        finally:
            self.ended.set()


def show_object(key: str, image: Image.Image, name: str, width: int, height: int, share: float) -> Image.Image | None:
    """Show a picture's object as the model will see it. Returns the cut-out as RGBA, None while there is none.

    share: the object's longer side over the frame's shorter one.
    """
    work: _CutOut | None = st.session_state.get("cutting")
    if work is None or work.key != key:
        note = fetched_first(image)
        if note:
            st.info(f"The object is to stand alone, on white. {plain(note)}", icon=":material/download:")
            if not st.button("Fetch it and cut the object out", icon=":material/content_cut:"):
                st.caption("Or give a picture whose background is transparent already.")
                return None
        work = st.session_state["cutting"] = _CutOut(key, image)
        work.ended.wait(0.5)  # a picture with transparency takes no time
    if not work.ended.is_set():
        _watch()
        return None
    if work.result is None:
        st.error(plain(work.error), icon=":material/content_cut:")
        st.button("Try again", on_click=lambda: st.session_state.pop("cutting"))
        return None
    try:
        frame = place_object(work.result, width, height, share)
    except UserError as error:
        st.error(plain(str(error)), icon=":material/content_cut:")
        return None
    st.image(frame, width="stretch", output_format="PNG", alt=f"The object of {name}")
    st.caption(f"The model sees exactly this: the object on white, {width}×{height}.", text_alignment="center")
    return work.result


@st.fragment(run_every=1.0)
def _watch() -> None:
    """Show the progress of background removal; when it ends, the whole page is redrawn."""
    work: _CutOut | None = st.session_state.get("cutting")
    if work is None or work.ended.is_set():
        st.rerun()
    share = fetched_share()
    if share is None:
        st.progress(0.0, f"Cutting the object out · {time.monotonic() - work.started:.0f} s")
    else:
        st.progress(share, f"Fetching rembg's model · {share:.0%}")
