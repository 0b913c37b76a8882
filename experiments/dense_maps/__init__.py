"""Dense maps of reduced models: features of patches, and maps of a head."""
