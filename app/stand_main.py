"""The stand's entry point, in place of `main.py`: `sgm app --stand`."""

from __future__ import annotations

import streamlit as st

from app import look
from app.stand import page

st.set_page_config(page_title="Image to video", page_icon=look.icon(), layout="wide")
page.show_page()
