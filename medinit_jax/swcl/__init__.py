"""SWCL: weak labels of a few images, spread to all patches, train one encoder by contrast."""
