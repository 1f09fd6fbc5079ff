"""The Lab: pages that compare clips, and that make many of them.

They make no clips themselves: they submit jobs to `app.jobs`, and show what comes back.
"""
