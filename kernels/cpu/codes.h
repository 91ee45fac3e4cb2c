// Numbers of eight and four bits, read out where they are multiplied.
//
// A word of a line holds the next inputs of one output in two halves of sixteen bits: the even ones in the low half, the
// odd ones in the high half, so that a shift brings the next pair to where products of bf16 want it. What is read out is
// exact in bf16.
#pragma once

#include "kernels.h"

namespace sgl {

// The next two inputs of sixteen outputs in the form that products take: bf16, or floats where there are none of bf16.
#if defined(__AVX512BF16__)

using Inputs = i32x16;

static inline f32x16 dot(f32x16 acc, Inputs w, uint32_t x) { return dot_bf16(acc, w, x); }

#else

struct Inputs {
  f32x16 even, odd;
};

static inline f32x16 dot(f32x16 acc, const Inputs& w, uint32_t x) {
  return acc + w.even * to_float(bf16(x)) + w.odd * to_float(bf16(x >> 16));
}

#endif

// fp8 (e4m3). NaN is not among the numbers.
struct Float8 {
  static constexpr int kBits = 8;

  explicit Float8(const Weight&) {}

#if defined(__AVX512BF16__)
  // Pair `p` of a line. The numbers below 2^-6 have no leading one and come from a table.
  Inputs at(i32x16 line, int p) const {
    __m512i raw = (__m512i)line, low = p ? _mm512_srli_epi16(raw, 8) : raw, high = p ? raw : _mm512_slli_epi16(raw, 8);
    __m512i magnitude = _mm512_and_si512(low, _mm512_set1_epi16(0x7f));
    __m512i number = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16((127 - 7) << 7));
    number = _mm512_mask_permutexvar_epi16(number, _mm512_testn_epi16_mask(low, _mm512_set1_epi16(0x78)), low, small);
    return (Inputs)_mm512_ternarylogic_epi32(number, high, _mm512_set1_epi16(int16_t(0x8000)), 0xf8);  // a | (b & c)
  }

  // Multiples of 2^-9.
  const __m512i small = _mm512_castsi128_si512(_mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
#else
  Inputs at(i32x16 line, int p) const { return {number(line, 8 * p), number(line, 16 + 8 * p)}; }

  // The byte that begins at a bit.
  static f32x16 number(i32x16 line, int bit) {
    i32x16 top = line << (24 - bit);
    return as_float((top & int32_t(0x80000000)) | ((top & 0x7f000000) >> 4)) * 0x1p120f;  // the exponents' offset
  }
#endif
};

// Codes of four bits, of which a weight's table says what they mean.
struct Code4 {
  static constexpr int kBits = 4;

#if defined(__AVX512BF16__)
  explicit Code4(const Weight& w)  // twice, since five bits of an index count
      : table(_mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)w.table))) {}

  Inputs at(i32x16 line, int p) const {
    return (Inputs)_mm512_permutexvar_epi16(_mm512_srli_epi16((__m512i)line, 4 * p), table);
  }

  const __m512i table;
#else
  explicit Code4(const Weight& w) { store(table, load_bf16(w.table)); }

  Inputs at(i32x16 line, int p) const { return {numbers(line >> 4 * p), numbers(line >> (16 + 4 * p))}; }

  // Those whose codes are the lowest bits.
  f32x16 numbers(i32x16 index) const {
#if defined(__AVX512F__)
    return (f32x16)_mm512_permutexvar_ps((__m512i)index, (__m512)load(table));
#elif defined(__AVX2__)
    auto half = [&](i32x16::Half i) {
      __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)i);
      __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)i);
      return (f32x16::Half)_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32((__m256i)i, 28)));
    };
    return {half(index.a), half(index.b)};
#else
    f32x16 out;
    for (int i = 0; i < kLanes; ++i) out[i] = table[index[i] & 15];
    return out;
#endif
  }

  alignas(64) float table[kLanes];
#endif
};

}  // namespace sgl
