// SPDX-License-Identifier: Apache-2.0
// The mathematics of one pair, stated once for every kernel: which pairs count, softplus and sigmoid of a
// gap, the gradient's coefficient, and the merge of two running sums. Real is float or a vector of floats,
// Mask an integer of the same shape whose lanes are 0 or -1.
#pragma once

#if defined(__CUDACC__)
#define SECL_INLINE __host__ __device__ __forceinline__
#else
#define SECL_INLINE inline __attribute__((always_inline))
#endif

namespace secl {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kLargest = 3.402823466e38f;

// On a GPU without the slow path of an exact division; both are right to 2 ulp where 1 <= b.
template <class Real>
SECL_INLINE Real quotient(Real a, Real b) {
#if defined(__CUDA_ARCH__)
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

template <class Mask>
struct PairMask {
  Mask positive, negative;
};

template <class Mask>
SECL_INLINE PairMask<Mask> pair_mask(Mask comparable, Mask same_label, Mask attract, Mask repel) {
  return {comparable & same_label & attract, comparable & ~same_label & repel};
}

// The pairs of the denominator, as a mask.
template <class Mask>
SECL_INLINE Mask denominator(PairMask<Mask> pair, bool negatives_only) {
  return negatives_only ? pair.negative : (pair.negative | pair.positive);
}

template <class Real>
struct Attraction {
  Real softplus, sigmoid;
};

// softplus and sigmoid of a gap, given t = exp(-|gap|), which cannot overflow. With z = t / (2 + t) log(1 +
// t) is 2 artanh z, of relative error 4e-9 before rounding; one division serves z and 1 / (1 + t).
template <class Real>
SECL_INLINE Attraction<Real> attraction(Real gap, Real t) {
  const Real zero{}, one = zero + 1.0f;
  const Real inverse = quotient<Real>(one, (t + 1.0f) * (t + 2.0f));
  const Real z = t * ((t + 1.0f) * inverse), w = z * z;
  const Real series =
      (((w * 0.28179991245f + 0.27960199118f) * w + 0.40024942160f) * w + 0.66666311026f) * w + 2.0f;
  return {(gap > 0.0f ? gap : zero) + z * series, (gap >= 0.0f ? one : t) * ((t + 2.0f) * inverse)};
}

// d loss_i / d s_ij of one pair, scaled: push = scale g pull, draw = scale g / count, e = exp(s_ij - lse_i).
template <class Real, class Mask>
SECL_INLINE Real coefficient(PairMask<Mask> pair, Real e, Real push, Real draw, bool negatives_only) {
  const Real zero{};
  if (negatives_only) {
    return (pair.negative ? push * e : zero) - (pair.positive ? quotient<Real>(draw, e + 1.0f) : zero);
  }
  return (denominator(pair, false) ? push * e : zero) - (pair.positive ? draw : zero);
}

// A difference of numbers of this magnitude that is never negative: below their rounding it is noise, and 0.
SECL_INLINE double above_noise(double difference, double magnitude) {
  constexpr double kEpsilon = 0x1p-23;  // of float
  return difference < kEpsilon * magnitude ? 0.0 : difference;
}

// A sum of exp2(x - peak); peak is finite, so that an infinite x makes the sum infinite and not NaN.
template <class Real>
struct Running {
  Real peak, sum;
};

template <class Real, class Exp2>
SECL_INLINE Running<Real> merge(Running<Real> a, Running<Real> b, Exp2 exp2) {
  const Real peak = b.peak > a.peak ? b.peak : a.peak;
  return {peak, a.sum * exp2(a.peak - peak) + b.sum * exp2(b.peak - peak)};
}

}  // namespace secl
