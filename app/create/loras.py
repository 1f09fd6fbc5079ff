"""The widgets of LoRAs: which of those in the folders, and how strong."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import streamlit as st

from app.create.fields import base_fields, key_of, put
from app.look import plain
from sgm import LoraAbout, Version, about_lora, chosen_loras, installed_loras, lora_text


def any_loras(version: Version) -> bool:
    """Whether there are LoRAs, or some are chosen."""
    return bool(st.session_state[key_of(base_fields(version.name)["lora"], version)] or installed_loras())


def choose_loras(version: Version) -> None:
    """Draw the widgets. Their state is the field's text."""
    field = base_fields(version.name)["lora"]
    key, there = key_of(field, version), installed_loras()
    chosen = dict(chosen_loras(st.session_state[key]))
    about = {name: _about(path) for name, path in there.items()}
    titles = {name: _title(name, about.get(name)) for name in sorted({*there, *chosen}, key=str.casefold)}
    with st.container(key="loras"):
        st.session_state["lora:names"] = list(chosen)
        st.multiselect(
            field.label,
            list(titles),
            key="lora:names",
            format_func=titles.__getitem__,
            help="Small files that change the model. They lie in the folder loras beside the weights' folder.",
            on_change=_note,
            args=(key,),
            placeholder="Choose some" if titles else "None in the folder loras",
            disabled=not titles,
        )
        usual = (field.low, field.high) if st.session_state.get("whole_ranges") else field.usual or (0, 1)
        for name, strength in chosen.items():
            st.session_state[f"lora:strength:{name}"] = strength
            st.slider(
                f"Strength of {plain(titles[name])}",
                float(min(usual[0], strength)),
                float(max(usual[1], strength)),
                step=field.step,
                key=f"lora:strength:{name}",
                on_change=_note,
                args=(key,),
            )
            if name not in there:
                st.warning(f"{plain(name)} is not among this computer's LoRAs.", icon=":material/error:")
            elif said := about[name].problem or about[name].note:
                st.caption(plain(said[:1].upper() + said[1:]))


def _note(key: str) -> None:
    """Write the widgets' values into the field's text."""
    names = st.session_state["lora:names"]
    put(key, lora_text({name: round(float(st.session_state.get(f"lora:strength:{name}", 1.0)), 9) for name in names}))


def _title(name: str, about: LoraAbout | None) -> str:
    """A LoRA's title, with its file's name, by which titles differ."""
    return name if about is None or about.title == name else f"{about.title} ({name})"


def _about(path: Path) -> LoraAbout:
    try:
        state = path.stat()
    except OSError:
        return about_lora(path)
    return _about_file(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _about_file(path: Path, *stamp: int) -> LoraAbout:
    return about_lora(path)
