"""From a domain to the site that takes its mail, and to the lanes of Senders."""
