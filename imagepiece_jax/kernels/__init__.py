"""Operations, one file each: the plain definition, and equal, faster forms of it."""
