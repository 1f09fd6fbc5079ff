"""Presets of how a clip moves, by the names of its settings, for the pages that offer them."""

CALM = {"motion_bucket": 60}  # little moves, and little tears
LIVELY = {"motion_bucket": 200}
