"""The app's entry: `streamlit run app/main.py`, or `sgm app`."""

from __future__ import annotations

import pandas  # noqa: F401 - else the first charts import it, and another session meets half of it
import streamlit as st

from app import controls, create, history, look
from app.jobs import FolderInUse, table
from sgm import UserError

st.set_page_config(page_title="Image to video", page_icon=look.icon(), layout="wide")
try:
    table(look.address())
except UserError as error:
    st.error(controls.plain(str(error)), icon=":material/lock:")
    if isinstance(error, FolderInUse) and error.address:
        st.link_button("Open it", error.address)
    st.stop()
with controls.kept():
    st.navigation([create.page(), history.page()], position="top").run()
