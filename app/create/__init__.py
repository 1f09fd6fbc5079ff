"""The Create page: choosing a picture and settings, and showing a job's progress and clip.

The page computes no clips itself: a click submits a job to `app.jobs`, whose state the page shows.
"""
