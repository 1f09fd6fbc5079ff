"""The Streamlit app. It uses nothing of `sgm` but its public names."""
