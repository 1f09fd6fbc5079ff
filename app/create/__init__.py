"""The Create page: the picture and its movement, the job that they became, and the clip that came of it.

Nothing is computed in here: a click puts a job into `app.jobs`, and the page shows what has become of it.
"""
