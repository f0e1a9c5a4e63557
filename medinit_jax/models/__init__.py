"""Networks: primitive operations, the Flax module of a program, and named families."""
