"""Random changes to training images: crops on the host, the rest on the device."""
