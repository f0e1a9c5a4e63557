"""A network as data: architectures, their programs, their graphs, and the tape that runs them."""
