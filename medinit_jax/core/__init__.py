"""The floor under both routes: configuration, state, loop, checkpoints, logs and devices."""
