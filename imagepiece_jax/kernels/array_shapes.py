"""Shapes of arrays in many signatures: an alias names the axes behind the batch."""

from jaxtyping import Array, Bool, Float, Int

TokenValues = Float[Array, "batch tokens"]
TokenFlags = Bool[Array, "batch tokens"]
TokenIndices = Int[Array, "batch tokens"]
TokenRows = Float[Array, "batch tokens dim"]
TokenPairs = Float[Array, "batch tokens tokens"]
AllRows = Float[Array, "batch all_tokens dim"]  # the prefix, then the image tokens
TokenHeads = Float[Array, "batch tokens heads head_dim"]
QueryHeads = Float[Array, "batch queries heads head_dim"]
PixelRows = Float[Array, "batch height width channels"]
PatchGrid = Float[Array, "batch rows columns dim"]
