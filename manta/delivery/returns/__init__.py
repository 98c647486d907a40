"""What comes back: bounces, complaints, replies, and what they mean for addresses."""
