// From bf16 to the bytes that integer products take: activations at run time, weights at load.
#include <vector>

#include "kernels.h"

namespace sgl {

static int64_t padded(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

static int64_t num_groups(const Weight& w) { return (w.inner + w.group - 1) / w.group; }

static int64_t row_bytes(const Weight& w) { return padded(w.inner, w.group); }

int64_t activation_bytes(const Weight& w) {
  if (!w.is_integer()) return 0;
  return w.digits * (row_bytes(w) + num_groups(w) * int64_t(sizeof(int32_t))) + num_groups(w) * int64_t(sizeof(float));
}

// Values in words of lanes, the last one filled up with zeros.
struct Words {
  const bf16* x;
  int64_t count, whole;
  bf16 rest[kLanes] = {};

  Words(const bf16* x, int64_t count) : x(x), count(count), whole(count / kLanes * kLanes) {
    std::memcpy(rest, x + whole, sizeof(bf16) * (count - whole));
  }

  f32x16 at(int64_t i) const { return load_bf16(i < whole ? x + i : rest); }

  // The greatest magnitude; NaN if there is a NaN or an infinity, so that the scale is, and what is computed with it.
  float peak() const {
    f32x16 top{}, taint{};
    for (int64_t i = 0; i < count; i += kLanes) {
      f32x16 v = at(i);
      top = max_lanes(top, max_lanes(v, -v));
      taint += v - v;
    }
    return max_lane(top) + sum_lanes(taint);
  }

  // f(where, integers) for every word times `factor`, ties to even; magnitudes up to 2^22.
  template <typename F>
  void each_rounded(float factor, const F& f) const {
    // 1.5 * 2^23: the low bits of the sum are the rounded value.
    for (int64_t i = 0; i < count; i += kLanes) f(i, as_int(at(i) * factor + 12582912.0f) - 0x4b400000);
  }

  template <typename Byte>
  void put(Byte* out, int64_t i, i32x16 q) const {
    if (i < whole) return narrow((int8_t*)out + i, q);
    int8_t bytes[kLanes];
    narrow(bytes, q);
    std::memcpy(out + i, bytes, count - whole);
  }
};

constexpr float kTiny = 1e-30f;  // magnitudes below are zero: their inverse is none

// A group of activations, symmetric, to [-127, 127].
static void quantize_group(const bf16* x, int64_t count, int64_t size, int8_t* out, float* scale, int32_t* sum) {
  Words words(x, count);
  float peak = words.peak();
  *scale = peak / 127.0f;
  i32x16 total{};
  words.each_rounded(peak > kTiny ? 127.0f / peak : 0.0f, [&](int64_t i, i32x16 q) {
    total += q;
    words.put(out, i, q);
  });
  std::memset(out + count, 0, size - count);
  *sum = sum_lanes(total);
}

constexpr int kDigits = 3;

// A group of activations as they are: integers of 22 bits, in multiples of a power of two, of three signed bytes each.
// So an activation is exact down to 2^-14 of the greatest magnitude, and within 2^-22 of that below: a sum of products
// in float does no better. The bytes of an input lie `apart` from each other, their sums `sums_apart`, the lowest first.
static void split_group(const bf16* x, int64_t count, int64_t size, int8_t* out, int64_t apart, float* scale,
                        int32_t* sums, int64_t sums_apart) {
  Words words(x, count);
  float peak = words.peak(), inverse = 0.0f;
  *scale = peak * 0.0f;  // NaN if there is a NaN
  if (peak > kTiny) {
    uint32_t bits, exponent;
    std::memcpy(&bits, &peak, 4);
    exponent = bits >> 23;
    uint32_t unit = (exponent - 21) << 23, units = (254 + 21 - exponent) << 23;  // the greatest has 22 bits
    std::memcpy(scale, &unit, 4);
    std::memcpy(&inverse, &units, 4);
  }
  i32x16 totals[kDigits] = {};
  words.each_rounded(inverse, [&](int64_t i, i32x16 q) {
    for (int d = 0; d < kDigits; ++d) {
      i32x16 low = (q << 24) >> 24;
      totals[d] += low;
      words.put(out + d * apart, i, low);
      q = (q - low) >> 8;
    }
  });
  for (int d = 0; d < kDigits; ++d) {
    std::memset(out + d * apart + count, 0, size - count);
    sums[d * sums_apart] = sum_lanes(totals[d]);
  }
}

// A group of weights, see kernels/ops/quantize.py.
static void round_group(const bf16* x, int64_t count, int bits, uint8_t* out, float* scale) {
  Words words(x, count);
  float peak = words.peak();
  if (bits == 8) {
    *scale = peak / 127.0f;
  } else {
    float greatest = peak;
    for (int64_t i = 0; i < count && peak == peak; ++i)
      if (to_float(x[i] & 0x7fff) == peak) {
        greatest = to_float(x[i]);
        break;
      }
    *scale = to_float(to_bf16(greatest / -8.0f));
  }
  i32x16 middle = i32x16{} + (1 << (bits - 1)), most = middle + middle - 1;
  words.each_rounded(peak > kTiny ? 1.0f / *scale : 0.0f, [&](int64_t i, i32x16 q) {
    q = q + middle;
    words.put(out, i, at_most(q, most));
  });
}

struct Quantizer {
  const Weight& w;
  int64_t stride, groups;
  int8_t* data;
  float* scales;
  int32_t* sums;

  Quantizer(const Weight& w, int64_t rows, void* scratch) : w(w), stride(row_bytes(w)), groups(num_groups(w)) {
    scales = (float*)scratch;
    sums = (int32_t*)(scales + rows * groups);
    data = (int8_t*)(sums + rows * w.digits * groups);
  }

  void row(const bf16* x, int64_t r) const {
    for (int64_t g = 0; g < groups; ++g) {
      int64_t size = w.group, first = g * size, count = w.inner - first < size ? w.inner - first : size;
      int8_t* out = data + r * w.digits * stride + first;
      float* scale = scales + r * groups + g;
      int32_t* sum = sums + r * w.digits * groups + g;
      if (w.digits == 1) quantize_group(x + first, count, size, out, scale, sum);
      else split_group(x + first, count, size, out, stride, scale, sum, groups);
    }
  }

  Activations result() const { return {data, stride, scales, sums}; }
};

// Elements that every thread prepares for itself: it takes less time than waiting for one that does it for all.
constexpr int64_t kAlone = 4096;

Activations activations(const Weight& w, const bf16* x, int64_t rows, void* scratch, const bf16* norm, float eps,
                        bf16* normed) {
  static thread_local std::vector<char> own;
  bool alone = rows * w.inner <= kAlone, quantized = w.is_integer();
  if (!norm && !quantized) return {x, w.inner * int64_t(sizeof(bf16)), nullptr, nullptr};
  if (alone) {
    int64_t bytes = padded(rows * w.inner * int64_t(sizeof(bf16)), 64);
    own.resize(bytes + rows * activation_bytes(w));
    normed = (bf16*)own.data();
    scratch = own.data() + bytes;
  }
  Quantizer quantizer(w, rows, scratch);
  auto body = [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const bf16* row = x + r * w.inner;
      if (norm) {
        norm_row(row, w.inner, norm, eps, normed + r * w.inner);
        row = normed + r * w.inner;
      }
      if (quantized) quantizer.row(row, r);
    }
  };
  if (alone) body(0, rows);
  else parallel(rows, body, 1 + 8192 / w.inner);
  return quantized ? quantizer.result() : Activations{normed, w.inner * int64_t(sizeof(bf16)), nullptr, nullptr};
}

}  // namespace sgl

using namespace sgl;

extern "C" {

int64_t sgl_activation_bytes(const Weight* w) { return activation_bytes(*w); }

// weight [rows, inner] -> values of the same shape and scales [rows, groups].
void sgl_round(const bf16* weight, int64_t rows, int64_t inner, int bits, int64_t group, uint8_t* values, float* scales) {
  int64_t groups = (inner + group - 1) / group;
  parallel(rows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * groups; i < end * groups; ++i) {
      int64_t first = i % groups * group, place = i / groups * inner + first;
      round_group(weight + place, inner - first < group ? inner - first : group, bits, values + place, scales + i);
    }
  });
}
}
