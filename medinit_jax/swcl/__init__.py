"""Saliency-guided weak labels and the multi-label contrastive loss (arXiv 2108.02122): route 2."""
