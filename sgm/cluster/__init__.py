"""Other machines' devices, through Ray (https://docs.ray.io).

`workers.py` is this program's side: `sgm.Cluster` has workers, each of which makes clips by an actor, a process on a
node of the cluster, with a GPU or, in a cluster without any, with a core. `maker.py` is what runs there. `driver.py`
stands between, in a process of its own, and alone knows Ray, which ends its process when a cluster's head is gone.
"""
