"""The stand, `sgm app --stand`: for passers-by, who make a film of a picture in three touches.

`open_stand` notes what its host has chosen; `page` is what visitors see, `routes` what their phones fetch.
"""
