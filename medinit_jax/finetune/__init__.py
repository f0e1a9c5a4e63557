"""Fine-tuning: one start, one network, one task, and what comes of it."""
