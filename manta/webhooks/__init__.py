"""Outgoing webhooks: what happens in a workspace, told to other people's servers.

Deliveries follow the Standard Webhooks specification 1.0: the payload's shape, the signature, the
identifier that is the receiver's idempotency key, the schedule of retries. A delivery is a row of
the outbox of its person's shard, written in the very group whose changes it tells of: what was
stored is told, and what was not stored is not. From there on it is delivered **at least once**.

Pure: ``endpoints`` (what is told to whom), ``deriving`` and ``bodies`` (from changes to rows),
``outbox`` (the commands), ``hooks`` (whom to wake), ``retries`` and ``health`` (when to try again),
``signing``. ``actors.courier`` sends.
"""
