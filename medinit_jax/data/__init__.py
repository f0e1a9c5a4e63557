"""Images: phantoms, sources, augmentation and the input pipeline."""
