"""The greedy k-centre algorithm: every next pick is the point farthest from all picks before it.

Exactly that, but not one pass over all points per pick. The distance to the nearest pick only shrinks, so no point
outside the CANDIDATES farthest ones can be next before these have all come below the farthest of the others: until then
a round picks among them alone, from their own distance matrix. Its picks are then compared with all points at once, as
matrix products. A round makes hundreds of picks, and the whole is bound by arithmetic instead of memory.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

CANDIDATES = 2048  # among which one round picks
PICKS = 128  # compared with all points at a time
BLOCK = 2048  # points compared with them at a time: what is in work should stay in a cache


class _Round(NamedTuple):
    """A round's state.

    picks: int32 [n_picks + PICKS], of which the first n_made are made.
    n_made: int32 [].
    candidates: int32 [M], indices of the points among which the round picks.
    between: float32 [M, M], squared distances of the candidates to each other.
    nearest: float32 [M], their squared distances to the nearest pick; -1 for picks.
    """

    picks: jax.Array
    n_made: jax.Array
    candidates: jax.Array
    between: jax.Array
    nearest: jax.Array


@partial(jax.jit, static_argnames="n_picks")
def greedy_coreset(points: jax.Array, first: jax.Array | int, *, n_picks: int) -> jax.Array:
    """Indices int32 [n_picks] of the points picked, in the order of picking, without repetition.

    Args:
        points: float32 [n, d].
        first: index of the first pick.
        n_picks: 1 .. n.
    """
    points = points - points.mean(axis=0)  # short vectors lose less where distances are products
    squares = jnp.sum(points**2, axis=1)
    n_candidates = min(CANDIDATES, len(points))

    def one_round(state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        picks, n_made, nearest = state
        farthest, candidates = jax.lax.top_k(nearest, min(n_candidates + 1, len(points)))
        others = farthest[n_candidates] if n_candidates < len(points) else jnp.float32(-1)
        candidates, farthest = candidates[:n_candidates], farthest[:n_candidates]
        among = points[candidates]
        between = _squared_distances(among, squares[candidates], among, squares[candidates])
        done = jax.lax.while_loop(
            lambda now: (now.n_made < n_picks) & (now.nearest.max() >= others),
            _pick,
            _pick(_Round(picks, n_made, candidates, between, farthest)),  # the first always holds
        )
        return done.picks, done.n_made, _with_picks(nearest, points, squares, done.picks, n_made, done.n_made)

    # Room for a whole block of picks behind the last one. Places not in use hold the first pick, which changes nothing.
    picks = jnp.full((n_picks + PICKS,), first, jnp.int32)
    n_made = jnp.int32(1)
    nearest = _with_picks(jnp.full((len(points),), jnp.inf), points, squares, picks, jnp.int32(0), n_made)
    picks, _, _ = jax.lax.while_loop(lambda state: state[1] < n_picks, one_round, (picks, n_made, nearest))
    return picks[:n_picks]


def _pick(now: _Round) -> _Round:
    chosen = jnp.argmax(now.nearest)
    return now._replace(
        picks=now.picks.at[now.n_made].set(now.candidates[chosen]),
        n_made=now.n_made + 1,
        nearest=jnp.minimum(now.nearest, now.between[chosen]).at[chosen].set(-1),
    )


def _with_picks(
    nearest: jax.Array, points: jax.Array, squares: jax.Array, picks: jax.Array, start: jax.Array, end: jax.Array
) -> jax.Array:
    """Squared distances [n] to the nearest pick, -1 for picks, after picks start .. end - 1 are taken into account."""
    side = min(BLOCK, len(points))

    def some_picks(i: jax.Array, nearest: jax.Array) -> jax.Array:
        chosen = jax.lax.dynamic_slice_in_dim(picks, start + i * PICKS, PICKS)
        centres, lengths = points[chosen], squares[chosen]

        def some_points(j: jax.Array, nearest: jax.Array) -> jax.Array:
            at = jnp.minimum(j * side, len(points) - side)  # the last block overlaps: the minimum stays what it is
            block, known, own = (jax.lax.dynamic_slice_in_dim(x, at, side) for x in (points, nearest, squares))
            new = _squared_distances(centres, lengths, block, own).min(axis=0)
            return jax.lax.dynamic_update_slice_in_dim(nearest, jnp.minimum(known, new), at, 0)

        return jax.lax.fori_loop(0, -(-len(points) // side), some_points, nearest).at[chosen].set(-1)

    return jax.lax.fori_loop(0, (end - start + PICKS - 1) // PICKS, some_picks, nearest)


def _squared_distances(a: jax.Array, a_squares: jax.Array, b: jax.Array, b_squares: jax.Array) -> jax.Array:
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(a_squares[:, None] + b_squares - 2 * products, 0)
