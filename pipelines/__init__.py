"""Jobs over the lake: a pure plan each, and a thin run with Ray Data, one task per shard."""
