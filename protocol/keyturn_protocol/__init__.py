"""The pure core of Keyturn: formats, checks and sums that agent, verifier and auditor share.

No module here opens a file or a socket, reads a clock or draws randomness: bytes and times come in as
arguments. The one exception is :mod:`keyturn_protocol.chips`, which reads the data file beside it.
"""
