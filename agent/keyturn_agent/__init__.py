"""The agent on a GPU host: meters each chip and signs an append-only log of what it saw.

Dependencies point one way: ``cli → daemon → {sampler, store, uploader} → ports``, and from there to
:mod:`keyturn_protocol`. The pure parts (sampler, attribution, losses, uploader) take values and return values;
files are in :mod:`~keyturn_agent.files` and what stands on it, the network is in :mod:`~keyturn_agent.client`.
"""

__version__ = "0.1.0"
