"""The gate on a GPU host: keeps chips locked until a lease opens them, and stops a run when its time is over.

Root's part of the start switch, and small on purpose: one socket, no network, no keys, nothing of the other packages.
It doesn't decide who may run: it does what the agent's account asks of it, and root can always get around it.

    cli → server → gate → {grants, keeper, locker, notices, processes, strays} → driver
"""

__version__ = "0.1.0"
