"""What becomes of mail is watched, and what hurts the sender is slowed or stopped."""
