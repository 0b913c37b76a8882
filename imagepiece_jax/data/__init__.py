"""Images from sources to batches: opened, decoded, cropped, augmented, normalized."""
