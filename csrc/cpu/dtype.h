// The floating-point types of tensors, and their conversion to and from fp32 one number at a time.
#pragma once

#include <cstdint>
#include <cstring>

namespace pyseq {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2 };  // the numbers are those of pyseq/ops/dispatch.py

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

static inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float to_float(float value) { return value; }

static inline float to_float(bf16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

static inline float to_float(f16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) {  // inf, nan
    return float_of(sign | 0x7f800000u | magnitude);
  }
  // The exponent is rebiased by a product, which also makes subnormal halves normal.
  return float_of(sign | bits_of(float_of(magnitude) * float_of(0x77800000u)));  // 2^112
}

static inline void from_float(float value, float* out) { *out = value; }

static inline void from_float(float value, bf16* out) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x40u);  // a nan stays one
  } else {
    out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // ties to even
  }
}

static inline void from_float(float value, f16* out) {
  const uint32_t bits = bits_of(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint16_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 the half is subnormal: adding 0.5 leaves it, rounded by the hardware, in the lowest bits.
    half = static_cast<uint16_t>(bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u);
  } else {
    half = static_cast<uint16_t>((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13);
  }
  out->bits = static_cast<uint16_t>(sign | half);
}

static inline size_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

}  // namespace pyseq
