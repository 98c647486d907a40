"""How fast mail may leave: gates, permits, connections, pools, warm-up."""
