"""Manta: e-mail marketing on an actor system, every recipient accounted for.

This package is the domain core. It does no I/O, knows no actor system and reads no clock: the
functions here map values to values. Two rooms are the exception, and nothing in the core imports
them: ``manta.store`` (journal, manifest, shard database, lake) and the doors for people,
``manta.client`` and ``manta.cli``.
"""

__version__ = "0.1.0"
