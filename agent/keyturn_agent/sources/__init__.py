"""Kinds of :class:`~keyturn_agent.ports.GpuSource`, a module each."""
