"""What this machine can do, and does fast."""
