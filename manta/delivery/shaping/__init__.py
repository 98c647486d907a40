"""What each mailbox provider takes from us, and how to react to its words, as data."""
