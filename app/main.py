"""The app's entry point: `streamlit run app/main.py`, or `sgm app`."""

from __future__ import annotations

import pandas  # noqa: F401 - charts import it lazily, and a second session at that time would fail
import streamlit as st

import app.stale  # noqa: F401 - a click right after another one undoes nothing of it
from app import first, history, look, places
from app.create import page as create
from app.jobs import FolderInUse, table
from app.lab import batch, compare, drafts, sweep
from sgm import UserError

st.set_page_config(page_title="Image to video", page_icon=look.icon(), layout="wide")
origin, host = (st.context.headers.get(name) for name in ("Origin", "Host"))
if origin and origin.partition("://")[2] != host and origin not in st.get_option("server.corsAllowedOrigins"):
    # `sgm app` does not come here: Streamlit itself lets pages of other ports of this machine in.
    st.error("Only this page's own address may ask here.", icon=":material/lock:")
    st.stop()
st.html(look.style())
try:
    table(look.address())
except UserError as error:
    st.error(look.plain(str(error)), icon=":material/lock:")
    if isinstance(error, FolderInUse) and error.address:
        st.link_button("Open it", error.address)
    st.stop()
pages = [create.page(), history.page(), compare.page(), sweep.page(), drafts.page(), batch.page()]
places.know(pages)
page = st.navigation(pages, position="top")
first.wait_for_browser()
page.run()
