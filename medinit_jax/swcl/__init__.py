"""SWCL: weak labels of patches, and the encoder that is trained with them (route 2)."""
