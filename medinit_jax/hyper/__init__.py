"""Route 1, the hyper-initializer: a hypernetwork reads an architecture, writes its parameters."""
