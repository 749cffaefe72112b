"""Divergences between two distributions, term by term over their bins.

A bin is an id, or all ids that a record does not name. Merging bins can only
lower a divergence (data processing inequality), so a sum over K ids and one bin
for the rest is a lower bound of the sum over V, with its minimum at the same
place.

The formulas define the names; two other projects use `beta` with opposite
meanings. Letter: K bins, of any distribution.
"""

import dataclasses

import jax
import jax.numpy as jnp

from analogjax.config import train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Divergence:
  """The kind of divergence from the teacher t to the student q.

  With m = mixture t + (1 - mixture) q:

    forward_kl       KL(t || q)
    reverse_kl       KL(q || t)
    skew_kl          KL(t || m)
    jensen_shannon   mixture KL(t || m) + (1 - mixture) KL(q || m)
    total_variation  sum |t - q| / 2

  Source: generalised Jensen-Shannon, arXiv:2306.13649, eq. 1; skew KL,
  arXiv:2402.03898, eq. 3.
  """

  name: str = "forward_kl"
  mixture: float = 0.5  # The teacher's weight in m.

  def __post_init__(self):
    if self.name not in train.DIVERGENCES:
      raise ValueError(
        f"divergence: expected {' or '.join(train.DIVERGENCES)}, found"
        f" {self.name!r}."
      )
    if not 0 < self.mixture < 1:
      raise ValueError(
        f"mixture: expected 0 < mixture < 1, found {self.mixture}."
      )

  def terms(self, logt_K: jax.Array, logq_K: jax.Array) -> jax.Array:
    """Contribution of each bin, in nats; a bin where t and q are 0 adds 0.

    Args:
      logt_K: [..., K] logarithms of the teacher's probabilities; may be -inf.
      logq_K: of the student's, finite where logt_K is.
    """
    if self.name == "forward_kl":
      return _kl(logt_K, logq_K)
    if self.name == "reverse_kl":
      return _kl(logq_K, logt_K)
    if self.name == "total_variation":
      return jnp.abs(jnp.exp(logt_K) - jnp.exp(logq_K)) / 2
    log_mixture = jnp.log(jnp.float32(self.mixture))
    log_rest = jnp.log1p(-jnp.float32(self.mixture))
    logm_K = _logaddexp(log_mixture + logt_K, log_rest + logq_K)
    of_teacher = _kl(logt_K, logm_K)
    if self.name == "skew_kl":
      return of_teacher
    of_student = _kl(logq_K, logm_K)
    return self.mixture * of_teacher + (1 - self.mixture) * of_student

  def slopes(
    self, logt_K: jax.Array, logq_K: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """The terms, and d(term) / d(logq) of each.

    Through q = softmax(x) the gradient of the sum is slope - q sum(slope).
    """
    return jax.jvp(
      lambda logq: self.terms(logt_K, logq), (logq_K,), (jnp.ones_like(logq_K),)
    )


def _kl(loga_K, logb_K):
  # 0 log 0 = 0; the inner where keeps the derivative finite there.
  is_zero = loga_K == -jnp.inf
  safe = jnp.where(is_zero, 0.0, loga_K)
  return jnp.where(is_zero, 0.0, jnp.exp(loga_K) * (safe - logb_K))


def _logaddexp(a, b):
  """log(e^a + e^b), with a derivative where a is -inf."""
  top = jax.lax.stop_gradient(jnp.maximum(a, b))
  safe = jnp.where(top == -jnp.inf, 0.0, top)
  total = jnp.exp(a - safe) + jnp.exp(b - safe)
  is_zero = total == 0
  return jnp.where(
    is_zero, -jnp.inf, safe + jnp.log(jnp.where(is_zero, 1.0, total))
  )
