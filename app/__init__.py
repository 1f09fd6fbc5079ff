"""The Streamlit app. Of `sgm` it imports public names only."""
