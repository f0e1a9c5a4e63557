"""Losses of embeddings that both routes know, on one device or many."""
