"""The app's entry: `streamlit run app/main.py`, or `sgm app`."""

from __future__ import annotations

import streamlit as st

st.set_page_config(page_title="Image to video", page_icon=":material/movie:", layout="wide")
st.navigation([st.Page("create.py", title="Create", icon=":material/movie:", default=True)]).run()
