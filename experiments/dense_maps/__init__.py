"""What reduced models keep of dense maps: features of patches, and a head's maps."""
