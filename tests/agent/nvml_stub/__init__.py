"""A stub of ``libnvidia-ml.so.1``, see README.md."""
