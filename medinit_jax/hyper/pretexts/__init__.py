"""Self-supervised tasks, a file each; `hyper.pretext` lists them by name."""
