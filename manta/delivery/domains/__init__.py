"""Sending domains: keys, and whether receivers can tell that mail is ours."""
