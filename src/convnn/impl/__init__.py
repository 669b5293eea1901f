"""Interchangeable executions of one contract: a ``Search`` and a ``Gather`` in, neighbours or tokens out."""
