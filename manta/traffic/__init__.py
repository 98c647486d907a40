"""Machine traffic: how likely it is that a person was behind an open or a click.

``user_agents`` and ``networks`` know programs and networks by lists, ``classifier`` weighs what is
known of a hit, ``judging`` sees hits together in their shard, ``reclassify`` judges again what is
on record. See docs/traffic.md.
"""

VERSION = 1  # of lists and weights: raised with each change, so that the past can be judged again
