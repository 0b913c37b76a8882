"""Operations, one file each: the plain definition, and equal, faster forms of it."""

from imagepiece_jax.kernels.forms import reference_forms as reference_forms
