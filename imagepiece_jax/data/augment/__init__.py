"""Training images changed at random: cropped on the host, the rest on the device."""
