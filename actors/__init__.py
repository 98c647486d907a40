"""The actors: thin classes that load, take a command, call the domain, journal, apply, reply.

Each file holds one plain Python class; ``runtime.py`` alone knows Ray, ``bootstrap.py`` composes
the actors of a workspace, ``handles.py`` is how everybody else talks to them.
"""
