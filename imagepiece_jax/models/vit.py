"""The vision transformer: stem, blocks with token reduction, pooling and head."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes, reshard
from jaxtyping import Array, Float, Shaped

from imagepiece_jax.data.normalize import check_images, warn_if_unnormalized
from imagepiece_jax.errors import InputError
from imagepiece_jax.kernels.folded_stem import FoldedStem
from imagepiece_jax.kernels.token_layout import keep_token_major
from imagepiece_jax.models import layers
from imagepiece_jax.models.attention import AttentionPool, cut_pooled_tokens
from imagepiece_jax.models.block import Block, BlockReduction
from imagepiece_jax.models.config import FLOAT32, Execution, ViTConfig
from imagepiece_jax.models.layers import LayerNorm
from imagepiece_jax.reduction import contract
from imagepiece_jax.reduction.block_plan import BlockPlan, StepCounts
from imagepiece_jax.reduction.methods.method import ModelFacts
from imagepiece_jax.reduction.reduction import Reduction
from imagepiece_jax.reduction.state import Outputs, initial_state


def draw_drop_path_scale(
    keys: Shaped[Array, " batch"], depth: int, rate: float
) -> Float[Array, "batch {depth} 2"]:
    """Draw DeiT's drop path factors for both branches per block.

    A branch is dropped (factor 0) with probability p, or scaled by 1 / (1 - p). p grows
    linearly over the blocks. A block's branches share p but are drawn independently.

    keys: random keys, one per image
    rate: the last block's p
    """
    drop_rates = jnp.linspace(0.0, rate, depth, dtype=jnp.float32)
    keep_rates = 1 - drop_rates[:, None]  # [depth, 1]

    def draw(key):
        is_kept = jax.random.uniform(key, (depth, 2)) < keep_rates
        return is_kept.astype(jnp.float32) / keep_rates

    return jax.vmap(draw)(keys)


class ViT(nn.Module):
    """A ViT whose plan may reduce tokens; with a dense plan, the plain model.

    Parameters, scores, softmax and logits are float32.
    """

    config: ViTConfig
    # Token counts and the reducing step per block, by `plan_blocks`. The plan
    # depends on the patch count only, not on the image's shape.
    plan: tuple[BlockPlan, ...]
    execution: Execution = FLOAT32
    prop_attn: bool = False  # add log(size) to the attention logits
    # The reduction behind the plan, set by `create.with_plan`. Not compared:
    # models with one plan are equal.
    reduction: Reduction | None = dataclasses.field(default=None, compare=False)

    if TYPE_CHECKING:  # Flax leaves open what `apply` returns

        def apply(self, variables: Mapping, *args: Any, **options: Any) -> Any: ...

    @property
    def depth(self) -> int:
        return len(self.plan)

    @property
    def has_selectors(self) -> bool:
        """Whether a reducer has parameters, so it learns its selection."""
        return any(isinstance(plan.reducer, nn.Module) for plan in self.plan)

    @nn.nowrap
    def with_execution(self, **changes: Any) -> "ViT":
        """The same model with changed Execution fields."""
        return self.clone(execution=dataclasses.replace(self.execution, **changes))

    @nn.nowrap
    def facts_for_methods(self) -> ModelFacts:
        """The facts about this model that a Method may use."""
        config = self.config
        return ModelFacts(
            patches=math.prod(config.grid),
            embed_dim=config.embed_dim,
            class_token=config.arch.class_token,
            pool=config.arch.pool,
            classes=config.num_classes,
            depth=self.depth,
            name=config.name,
        )

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        keys: dict[str, jax.Array] | None = None,
        with_states: bool = False,
    ) -> Outputs:
        """Run the model on images.

        images: [B, H, W, 3], normalized by `mean` and `std`
        train: draw drop path, and use batch statistics in batch norm
        keys: {"drop_path": [B] keys, "reducer": [B] keys}. Training with drop path
            needs "drop_path". Random reducers use "reducer", or fixed keys for None.
        with_states: fill `Outputs.states`
        Raises InputError for images of another shape, and for `rngs`.
        """
        check_images(images)
        warn_if_unnormalized(images, self.config.mean, self.config.std)
        # `rngs` would have no effect; only a module around this one may draw from them.
        scope = self.scope
        if scope is not None and not scope.path and set(scope.rngs) - {"params"}:
            raise InputError(f"rngs has {[*scope.rngs]}, but the model draws from keys")
        sharding = batch_sharding(images)
        if sharding is not None and self.is_initializing():
            # Variables depend on the images' shape alone, so every device gets all.
            images = reshard(images, NamedSharding(sharding.mesh, PartitionSpec()))
        elif sharding is not None:
            return _call_on_auto_axes(self, sharding, images, train, keys, with_states)
        state = self._embed_images(images, train)
        scores = {}
        states = []
        decisions = []
        scales = self._draw_drop_path(keys, train)
        norm = self._make_norm("norm") if self.config.arch.final_norm else lambda x: x
        pool = None
        probe = None
        if self.config.arch.pool == "map":
            dtype = self._part_dtype("attn_pool")
            pool = AttentionPool(self.config, dtype, self.prop_attn, name="attn_pool")

            def probe(state):
                return pool.probe_scores(norm(state.x), state)

        for index in range(self.depth):
            block = self._make_block(index)
            reduction = self._make_reduction(index, keys, probe)
            factors = scales[index]
            # `float32_parts` may name single blocks.
            state = dataclasses.replace(state, x=state.x.astype(block.execution.dtype))
            state, scores, decision = block(state, scores, reduction, factors, train)
            if with_states:
                states.append(state)
            if decision:
                decisions.append(decision)
        outputs = self._compute_outputs(state, decisions, norm, pool)
        return dataclasses.replace(outputs, states=tuple(states))

    def _part_dtype(self, part):
        if part in self.execution.float32_parts:
            return jnp.dtype("float32")
        return self.execution.dtype

    def _make_block(self, index):
        """Make a Block; `head_only` limits the last block to the head's queries."""
        num_queries = None
        is_last = index == self.depth - 1
        # Initialization runs the whole block, because its reducer may have parameters.
        if is_last and self.execution.head_only and not self.is_initializing():
            num_queries = self.config.arch.num_head_tokens
        name = f"blocks_{index}"
        execution = dataclasses.replace(self.execution, dtype=self._part_dtype(name))
        fields = (self.config, execution, index, self.plan[index], self.prop_attn)
        return Block(*fields, num_queries, name=name)

    def _make_reduction(self, index, keys, probe):
        """The BlockReduction at an index; None if the block keeps all tokens."""
        block_plan = self.plan[index]
        reducer: Any = block_plan.reducer
        if isinstance(block_plan.reducer, nn.Module):
            reducer = reducer.clone(parent=self, name=f"reducer_{index}")
            if block_plan.counts is None and self.is_initializing():
                # The step reduces nothing in this plan, but its reducer has parameters:
                # a call on random inputs creates them.
                num_tokens = block_plan.mlp_tokens - self.config.arch.prefix
                widths = self.config.embed_dim, self.config.num_heads
                inputs = contract.random_inputs(reducer, num_tokens, *widths)
                reducer(inputs, StepCounts(num_tokens, num_tokens))
        if block_plan.counts is None:
            return None
        num_heads = self.config.num_heads
        return BlockReduction(index, block_plan.counts, reducer, num_heads, keys, probe)

    def _draw_drop_path(self, keys, train):
        """Drop path factors [batch] of the two branches per block."""
        rate = self.execution.drop_path_rate
        if not (train and rate):
            return [(None, None)] * self.depth
        if keys is None:
            raise InputError('train=True needs keys={"drop_path": [B] keys}')
        factors = draw_drop_path_scale(keys["drop_path"], self.depth, rate)
        # [batch, depth, the two branches]
        return [(factors[:, i, 0], factors[:, i, 1]) for i in range(self.depth)]

    def _compute_outputs(self, state, decisions, norm, pool):
        """Pool the last block's tokens and apply the heads."""
        arch = self.config.arch
        x = state.x  # [batch, tokens, dim]
        # A head may read one or two tokens: jit drops the norm of all others. The limit
        # None, for a head that reads patches, takes all.
        head_tokens = norm(x[:, : arch.num_head_tokens])
        if arch.pool == "token":
            head_vector = head_tokens[:, 0]  # the class token's
        elif arch.pool == "mean":
            pooled_tokens, size, mask = cut_pooled_tokens(head_tokens, state, arch)
            if mask is not None:
                size = size * mask
            # The sum is 0 if all tokens of an image are masked.
            shares = size / jnp.maximum(jnp.sum(size, axis=1, keepdims=True), 1.0)
            weighted_tokens = pooled_tokens.astype(jnp.float32) * shares[:, :, None]
            head_vector = jnp.sum(weighted_tokens, axis=1)
        elif pool is not None:
            head_vector = pool(head_tokens, state)
        else:  # no pool: a vector per token
            head_vector = head_tokens
        if arch.fc_norm:
            head_vector = self._make_norm("fc_norm")(head_vector)
        head_vectors = {"head": head_vector}
        pooled = head_vector
        if arch.dist_token:
            head_vectors["head_dist"] = head_tokens[:, 1]  # the distillation token's
            pooled = jnp.mean(head_tokens, axis=1)
        num_classes = self.config.num_classes
        head_logits = []
        if num_classes:
            for name, vector in head_vectors.items():
                head_logits.append(layers.dense_layer(num_classes, name=name)(vector))
        if len(head_logits) == 2:  # DeiT's prediction is the mean of both heads
            logits = (head_logits[0] + head_logits[1]) / 2
        elif head_logits:
            logits = head_logits.pop()  # a single head: Outputs.head_logits is ()
        else:
            logits = pooled.astype(jnp.float32)
        return Outputs(
            logits=logits,
            pooled=pooled,
            tokens=norm(x),
            state=state,
            results=tuple(decision.result for decision in decisions),
            reducer_inputs=tuple(decision.inputs for decision in decisions),
            head_logits=tuple(head_logits),
        )

    def _make_norm(self, name):
        return LayerNorm(self._part_dtype(name), self.config.arch.norm_eps, name=name)

    def _embed_images(self, images, train):
        """The TokenState before the first block, from images [batch, H, W, 3]."""
        arch = self.config.arch
        stem = self._make_stem()
        # Pixels beyond the last whole patch are cut, like a strided convolution does.
        height, width = images.shape[1:3]
        height -= height % self.config.patch_size
        width -= width % self.config.patch_size
        pixels = images[:, :height, :width].astype(self._part_dtype("patch_embed"))
        patches = stem(pixels, train)
        batch_size, rows, columns, dim = patches.shape
        x = patches.reshape(batch_size, rows * columns, dim)
        prefix = self._prefix_tokens(batch_size, dim)
        if arch.prefix_positions:
            if prefix:
                x = jnp.concatenate([*prefix, x], 1)
            x = self._add_positions(x)
        else:
            x = self._add_positions(x)
            x = jnp.concatenate([*prefix, x], 1)
        if arch.pre_norm:
            x = self._make_norm("norm_pre")(x)
        grid = (rows, columns)
        coordinates = arch.rotary.coordinates(grid) if arch.rotary else None
        return initial_state(keep_token_major(x), arch.prefix, grid, coordinates)

    def _prefix_tokens(self, batch_size, dim):
        """The learned prefix tokens: arrays [batch, count, dim]."""
        arch = self.config.arch
        counts = {
            "cls_token": int(arch.class_token),
            "dist_token": int(arch.dist_token),
            "reg_token": arch.registers,
        }
        shapes = {name: (1, count, dim) for name, count in counts.items() if count}
        params = [self.param(name, layers.NORMAL_INIT, shapes[name]) for name in shapes]
        prefix = [param.astype(self._part_dtype("patch_embed")) for param in params]
        return [jnp.broadcast_to(row, (batch_size, *row.shape[1:])) for row in prefix]

    def _make_stem(self):
        """Make the trained stem, or the FoldedStem of an Execution with `folded`."""
        config = self.config
        name = "patch_embed"
        sizes = (config.embed_dim, config.patch_size)
        fields = (*sizes, self._part_dtype(name))
        is_conv = config.stem == "conv"
        if self.execution.folded:
            widths = layers.conv_stem_widths(*sizes) if is_conv else ()
            return FoldedStem(*fields, widths, self.execution.folded, name=name)
        if is_conv:
            return layers.ConvStem(*fields, self.execution.axis_name, name=name)
        return layers.PatchStem(*fields, config.arch.patch_bias, name=name)

    def _add_positions(self, x):
        if not self.config.arch.positions:
            return x
        pos_embed = self.param("pos_embed", layers.NORMAL_INIT, (1, *x.shape[1:]))
        return x + pos_embed.astype(x.dtype)


def final_norm(model: ViT, variables: Mapping[str, Any]) -> Callable[[jax.Array], Any]:
    """The norm after the last block, as a function [.., D] -> [.., D]."""
    # A model without a final norm, for example with `fc_norm`, has the identity.
    if not model.config.arch.final_norm:
        return lambda x: x
    norm = LayerNorm(jnp.float32, model.config.arch.norm_eps)
    return lambda x: norm.apply({"params": variables["params"]["norm"]}, x)


def batch_sharding(images: Any) -> NamedSharding | None:
    """How a batch is divided over a mesh's explicit axes; None for any other array.

    With explicit axes (`jax.make_mesh` makes them) every reshape and every gather would
    have to name its sharding. A model runs on automatic axes instead, and its results
    are divided like its images.
    """
    abstract_sharding = jax.typeof(images).sharding
    mesh = abstract_sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return None
    spec = PartitionSpec(*abstract_sharding.spec[:1])
    if isinstance(images, jax.core.Tracer):
        return NamedSharding(mesh, spec)
    # Outside of jit a mesh needs devices.
    device_mesh = getattr(getattr(images, "sharding", None), "mesh", mesh)
    return NamedSharding(device_mesh, spec)


def on_auto_axes(call: Callable, images: Any) -> Callable:
    """Make `call` run on automatic axes, if `images` and its results have explicit."""
    sharding = batch_sharding(images)
    return auto_axes(call, out_sharding=sharding) if sharding else call


def _call_on_auto_axes(vit, sharding, images, train, keys, with_states):
    """Call a ViT on images with an explicit `sharding`; variables stay whole."""
    replicated_sharding = NamedSharding(sharding.mesh, PartitionSpec())

    def call(vit, images, keys):
        return vit(images, train, keys, with_states)

    mapped_call = nn.map_variables(
        call,
        trans_in_fn=lambda variables: reshard(variables, PartitionSpec()),
        trans_out_fn=lambda variables: reshard(variables, replicated_sharding),
        mutable=True,
    )
    return on_auto_axes(functools.partial(mapped_call, vit), images)(images, keys)
