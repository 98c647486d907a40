"""A small world to send to: mailbox providers that answer as real ones do, and people behind them.

Used by the demo, by tests and by benchmarks; nothing of it runs in production. Mail arrives by
real SMTP, people open and click through the real tracking URLs, and everything follows one seed.
"""
